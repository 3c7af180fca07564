"""The compiled kernels: torch-free C++ behind a C ABI, loaded with ctypes. Optional: without a compiler the package
installs all the same and runs its torch reference."""

from glob import glob
from pathlib import Path
from shutil import copy

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-pthread",
]  # sums must round as torch's do


class WithCudaSources(build_py):
    """The CUDA kernels are compiled where they run, so their sources travel as data of the package."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        place = Path(self.build_lib, "weightguard", "kernels", "cuda")
        place.mkdir(parents=True, exist_ok=True)
        for source in sorted(glob("cpp_ext/cuda/*.cu*")):
            copy(source, place)


setup(
    cmdclass={"build_py": WithCudaSources},
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
    ],
)
