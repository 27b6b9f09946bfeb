"""The one build step that pyproject.toml cannot say: compile the C kernels into the package."""

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution

HERE = Path(__file__).parent
build_native = runpy.run_path(str(HERE / "plm_edge/native/build.py"))["build"]


class BuildWithKernels(build_py):
    """Compile beside the sources, so that an editable checkout and a wheel find the same file."""

    def run(self) -> None:
        build_native()
        super().run()


class BinaryDistribution(Distribution):
    """The wheel holds a shared library: it is made for one platform."""

    def has_ext_modules(self) -> bool:
        return True


class WheelOfAnyPython(bdist_wheel):
    """The library is loaded by ctypes: it needs its platform, but no version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelOfAnyPython},
    distclass=BinaryDistribution,
)
