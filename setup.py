"""The compiled kernels: torch-free C++ behind a C ABI, loaded with ctypes. Optional: without a compiler the package
installs all the same and runs its torch reference."""

from glob import glob

from setuptools import Extension, setup

FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-pthread",
]  # sums must round as torch's do

setup(
    ext_modules=[
        Extension(
            "weightguard.kernels._native",
            sorted(glob("cpp_ext/cpu/*.cpp")),
            depends=sorted(glob("cpp_ext/cpu/*.h") + glob("cpp_ext/cpu/*.inc")),
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
        )
    ]
)
