// Blocks of work over threads. Which thread takes which block never shows in a result.
#pragma once

#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace wg {

// body(block, thread) for every block below `blocks`; it must not throw.
template <class Body>
void parallel(int threads, int64_t blocks, Body body) {
    std::atomic<int64_t> next{0};
    auto work = [&](int thread) {
        for (int64_t block = next++; block < blocks; block = next++) body(block, thread);
    };
    std::vector<std::thread> others;
    others.reserve(size_t(threads));
    for (int thread = 1; thread < threads && thread < blocks; ++thread) {
        try {
            others.emplace_back(work, thread);
        } catch (const std::system_error&) {
            break;  // the machine gives no more threads: the ones we have do the work
        }
    }
    work(0);
    for (std::thread& other : others) other.join();
}

}  // namespace wg
