"""bench_script.py: what scripts/bench.py makes of figures, with contenders that are played, and what it measures."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "scripts"))

import bench
import bench_peers
import bench_sweeps
from bench_programs import IN_PROCESS, LATENCY, Contender, Failed, either, python_with


class Played(Contender):
    """Gives these figures in turn; a text is why it fails."""

    def __init__(self, name, *figures, others=False, lacks=None, **rest):
        super().__init__(name, **rest)
        self.figures, self.others, self.lacks = iter(figures), others, lacks

    def missing(self):
        return self.lacks

    def run(self, seconds):
        figure = next(self.figures)
        if isinstance(figure, str):
            raise Failed(figure)
        return figure


def run(*contenders):
    return bench.Measure("m", *contenders).run(3, 1)


def the_ratio_is_the_median_of_those_of_each_turn():
    ours, bare = run(Played("ours", 1, 4, 9), Played("bare", 2, 4, 2, bar=">= 1.0"))
    assert (ours["median"], ours["least"], ours["most"], ours["ratio"]) == (4, 1, 9, None), ours
    assert (bare["median"], bare["ratio"], bare["met"]) == (2, 1, True), bare
    (ours,) = run(Played("ours", 1, 4, 9, bar=">= 5"))
    assert ours["met"] is False, ours


def of_two_ways_the_better_has_the_bar():
    for figure, better in (("gbytes_per_second", "more"), (LATENCY, "less")):
        ways = either("<= 1.3", Played("less", 1, 1, 1, figure=figure), Played("more", 2, 2, 2, figure=figure))
        rows = run(Played("ours", 1, 1, 1, figure=figure), *ways)
        assert [row["command"] for row in rows if row["bar"]] == [better], rows


def who_is_missing_or_fails_stands_in_the_record_with_the_reason():
    ours, gone, failed, bare = run(
        Played("ours", 1, 1, 1),
        Played("gone", others=True, lacks="gone", bar=">= 2"),
        Played("failed", 1, "exit code 3\nno route", others=True),
        Played("bare", 1, 1, 1),
    )
    assert (gone["left_out"], gone["bar"], gone["met"]) == ("no gone", ">= 2", None), gone
    assert failed["left_out"] == "exit code 3 no route" and "median" not in failed, failed
    assert ours["median"] == bare["ratio"] == 1
    table = bench.table([ours, gone, failed, bare])
    assert "| `gone` | left out: no gone |  | >= 2: not measured |" in table, table
    # The better of two ways is not there.
    _, _, there = run(Played("ours", 1, 1, 1), *either(">= 1", Played("gone", lacks="gone"), Played("there", 1, 1, 1)))
    assert there["met"] is True, there


def a_bare_loop_that_fails_ends_everything_and_in_a_smoke_run_everybody():
    for strict, others in ((False, False), (True, True)):
        bench.Measure.strict = strict
        try:
            run(Played("ours", 1, 1, 1), Played("it", 1, "broken", others=others))
        except Failed:
            continue
        finally:
            bench.Measure.strict = False
        raise AssertionError((strict, others))


def every_command_of_ours_names_its_transport():
    measures = bench.measures() + bench_peers.measures(bench.Measure)
    contenders = [c for measure in measures for part in getattr(measure, "measures", [measure]) for c in part.contenders]
    contenders += [c for sweep in bench_sweeps.sweeps() for _, _, c in sweep.points()]
    ours = [c.name().split() for c in contenders if c.name().startswith("windlass bench ")]
    assert len(ours) > 150, len(ours)
    for words in ours:
        assert ("--transport" in words) != (words[2] in IN_PROCESS), words


def sweeps_reach_as_far_as_they_say():
    by_name = {sweep.name: sweep for sweep in bench_sweeps.sweeps()}
    assert {64, 64 << 20} <= {x for _, x, _ in by_name["throughput by size"].points()}
    assert {x for _, x, _ in by_name["scaling by workers"].points()} == {1, 2, 4, 8}
    assert {f"{servers} servers, {way}" for servers in (1, 2, 4) for way in ("tcp", "shm")} < set(by_name["scaling by workers"].series)
    kinds = {f"{c}, {wire}, tcp" for c in ("asp", "ssp:2", "bsp") for wire in ("fp32", "fp16", "bf16")}
    assert kinds < set(by_name["wire and consistency"].series)


BARS = {
    "fold fp32, k = 8, in process": [">= 0.95"],
    "fold fp16, k = 8, in process": [">= 0.85"],
    "push": [">= 0.9", ">= 0.9", ">= 1.0"],
    "push 16M": [">= 0.9", ">= 0.9"],
    "pull": [">= 0.9"],
    "push-pull 16M": [">= 0.8", ">= 0.8"],
    "push-pull 16M beside peers": [">= 3"] if python_with("mxnet") else [">= 3", ">= 3"],
    "latency, spinning": ["<= 1.3"],
    "latency, blocking": ["<= 1.3"],
    "shm push 16M": [">= 0.9"],
    "shm latency, spinning": ["<= 2"],
    "shm latency, blocking": ["<= 1.3", "<= 1.3"],
    "allreduce 16M over shm": [">= 1.5"],
    "allreduce 64M over shm": [">= 1.5"],
    "allreduce 16M over tcp": [">= 0.85", ">= 0.85"],
    "allreduce 64M over tcp": [">= 0.85", ">= 0.85"],
    "sparse push, one list": [">= 100e6"],
    "sparse push, 16 drawn lists in turns, no key cache": [">= 0.7"],
    "sparse push, wide rows": [">= 0.8"],
    "gather": [">= 0.8"],
    "push, growth of the table": ["<= 1.10"],
    "memory of a server for an idle connection, 512 at once": ["<= 64"],
}
"""Those of ways to do the same stand beside each; in a record beside the best."""


def every_bar_is_measured():
    bars = {}
    for measure in bench.measures() + bench_peers.measures(bench.Measure):
        parts = [measure] if isinstance(measure, bench.Growth) else measure.contenders
        bars[measure.name] = [part.bar for part in parts if part.bar]
    assert {name: of for name, of in bars.items() if of} == BARS, bars


if __name__ == "__main__":
    checks = [check for check in list(globals().values()) if callable(check) and getattr(check, "__module__", "") == "__main__"]
    checks = [check for check in checks if check not in (Played, run)]
    for check in checks:
        check()
    print(f"{len(checks)} checks")
