// From counts to thresholds: exact ones over all keys, and brackets guessed from a sample.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels.h"

namespace wg {

constexpr int64_t ALL = INT64_MAX;

// What a selection takes: keys >= value where the row-major index is below `cut`, keys > value behind it.
struct Edge {
    int32_t value = NEVER;
    int64_t cut = ALL;
};

// low is reached by at_low keys, high by at_high of them.
struct Span {
    int32_t low, high;
    int64_t at_low, at_high;
};

// A value between the ends: interpolated on the counts, every third time the middle, so that a skewed range ends too.
inline int32_t between(const Span& s, int64_t need, int turn) {
    const int64_t width = int64_t(s.high) - s.low, counted = s.at_low - s.at_high;
    int64_t step = width / 2;
    if (turn % 3 != 2 && width < (1 << 25) && counted > 0)
        step = int64_t(double(width) * double(s.at_low - need) / double(counted));
    if (step < 1) step = 1;
    if (step > width - 1) step = width - 1;
    return int32_t(s.low + step);
}

// Narrow until `need` keys reach low exactly, or until low is the only value left, with at_high < need < at_low.
template <class Reaching>
Span narrowed(Reaching reaching, Span s, int64_t need) {
    for (int turn = 0; s.at_low != need && s.high - s.low > 1; ++turn) {
        const int32_t value = between(s, need, turn);
        const int64_t found = reaching(value);
        if (found >= need)
            s.low = value, s.at_low = found;
        else
            s.high = value, s.at_high = found;
    }
    return s;
}

// As narrowed, but content with a count that is `slip` off: ends that enclose the value of that rank, from `start`.
template <class Reaching>
Span about(Reaching reaching, int64_t count, double rank, double slip, int32_t start) {
    Span s{1, INFINITE, count, 0};
    int64_t step = 1 << 19;
    for (int turn = 0; s.high - s.low > 1; ++turn) {
        const int64_t near = start ? start + (s.low == 1 ? -step : step) * (turn > 0) : 0;
        const bool leap = start && (s.low == 1 || s.high == INFINITE) && near > s.low && near < s.high;
        const int32_t value = leap ? int32_t(near) : between(s, int64_t(rank), turn);
        if (leap && turn) step *= 4;
        const int64_t found = reaching(value);
        if (std::abs(double(found) - rank) <= slip) return {value, value, found, found};
        if (double(found) > rank)
            s.low = value, s.at_low = found;
        else
            s.high = value, s.at_high = found;
    }
    return s;
}

// The ranks between which the edge is looked for in a sample, in entries of the sample.
struct Window {
    double centre, spread;
};

// [low, high) that holds the value of the sample's rank window; an end that leaves the sample is open.
template <class Reaching>
void bracket(Reaching reaching, int64_t count, Window w, int32_t& low, int32_t& high) {
    const double slip = w.spread / 4;
    const bool open_low = w.centre + w.spread >= double(count), open_high = w.centre - w.spread < 1;
    const int32_t from_low = low, from_high = high;
    low = open_low ? 1 : about(reaching, count, w.centre + w.spread, slip, from_low).low;
    high = open_high ? INFINITE : about(reaching, count, w.centre - w.spread, slip, from_high).high;
    if (high <= low) high = low + 1;
}

}  // namespace wg
