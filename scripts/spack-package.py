# Spack recipe, for Spack 1.0 and later: put it into a repository of yours as packages/windlass/package.py. Untried: Spack is not
# in Debian, and fetches its packages from places that could not be reached where this was written.
from spack.package import *
from spack_repo.builtin.build_systems.cargo import CargoPackage


class Windlass(CargoPackage):
    """A parameter server for HPC clusters: exactly-once pushes, bit-reproducible Bsp, over TCP and RDMA verbs."""

    license("MIT OR Apache-2.0")

    # No release yet: spack dev-build windlass@main, in the repository's folder.
    version("main", branch="main", git="file:///path/to/windlass")

    variant("verbs", default=False, description="Serve over InfiniBand and RoCE")

    depends_on("c", type="build")
    depends_on("rust@1.93:", type="build")
    depends_on("rdma-core", when="+verbs")
    depends_on("llvm+clang", type="build", when="+verbs")
    depends_on("pkgconfig", type="build", when="+verbs")

    @property
    def build_args(self):
        return ["--features", "verbs"] if self.spec.satisfies("+verbs") else []

    @run_after("install")
    def pages(self):
        Executable(self.prefix.bin.windlass)("pages", self.prefix.share)
