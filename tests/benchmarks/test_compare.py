"""The comparison with others: its harness with a fake peer, and the page that is made of its results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.compare import __main__ as command
from benchmarks.compare import page, search, serving, whole
from benchmarks.compare.page import Column, Highlight, Part
from benchmarks.compare.peer import RunningPeer
from benchmarks.compare.results import Case, Results, Row
from benchmarks.harness import SkipCase


@pytest.fixture
def fake(tmp_path: Path) -> tuple[str, str, Path, Path, Path]:
    """Arguments of the fake peer, whose inputs are 2,000 rows."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    np.save(inputs / "vectors.npy", np.eye(2000, 4, dtype=np.float32))
    np.save(inputs / "parts.npy", np.arange(2000))
    np.save(inputs / "queries.npy", np.zeros((3, 4), np.float32))
    return "tests.benchmarks.fake_peer", "", tmp_path / "data", inputs, tmp_path


def test_a_peer_is_asked_over_a_pipe(fake):
    with RunningPeer(*fake) as peer:
        assert (peer.version, list(peer.efforts), peer.filters) == ("1.0", [1, 2], True)
        assert peer.ask("add", first=0, count=10, batch=4)["seconds"] > 0
        assert peer.ask("count") == {"count": 10}
        peer.ask("effort", value=2)
        assert peer.ask("answers", count=2, below=0) == {"answers": [[], []]}
        assert peer.ask("answers", count=2) == {"answers": [[2], [2]]}
        answered = peer.ask("ask", callers=2, seconds=0.01)
        assert answered["rate"] > 0
        assert answered["errors"] == {}
        assert peer.ask("ask", callers=1, seconds=0.01, below=0)["errors"]["ValueError"] >= 5
        assert peer.ask("flood", rate=100, seconds=0.05)["answered"] == 5
        peer.ask("effort", value=0)
        assert peer.ask("flood", rate=100, seconds=0.05)["refused"] == 5
        assert peer.memory_mib() > 1


def test_what_is_acknowledged_before_a_kill_is_counted(fake):
    peer = RunningPeer(*fake)
    peer.send("add", first=0, count=2000, batch=1)
    added = peer.killed_while_adding(20)
    with RunningPeer(*fake) as again:
        assert 20 <= added <= again.ask("count")["count"] <= added + 1


def test_a_peer_that_does_not_start_says_why(fake):
    (fake[2] / "broken").mkdir(parents=True)
    with pytest.raises(SkipCase, match="it cannot open its folder"):
        RunningPeer(*fake)


@pytest.fixture
def compare(monkeypatch, tmp_path):
    """Runs the command over given measurements; returns the rows of its file, and what it printed."""

    class FakePart:
        PART = Part("search", "Search", "About.", (Column("p50_ms", "p50, ms"),), {"a": "a note."})

    monkeypatch.setattr(command, "PARTS", [FakePart])
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr("benchmarks.compare.results.WATCHED_S", 0.01)
    monkeypatch.setattr(command, "pages", lambda *_: {})

    def run(measures, *arguments):
        FakePart.cases = lambda *_: [
            Case(Row("search", peer, "1 k"), measure) for peer, measure in measures.items()
        ]
        monkeypatch.setattr(sys, "argv", ["compare", *arguments])
        command.main()
        return {row["peer"]: row for row in json.loads((tmp_path / "results.json").read_text())}

    return run


def test_rows_are_kept_one_by_one_and_measured_once(compare, capsys):
    def broken_off(row):
        raise KeyboardInterrupt

    def left_out(row):
        raise SkipCase("no such package")

    with pytest.raises(KeyboardInterrupt):
        compare({"a": lambda row: row.values.update(p50_ms=1.0), "b": left_out, "c": broken_off})
    assert "search: b, 1 k: left out, no such package" in capsys.readouterr().out
    rows = compare({"a": broken_off, "b": broken_off, "c": lambda row: row.values.update(p50_ms=3.0)})
    assert [rows[peer]["values"] for peer in "abc"] == [{"p50_ms": 1.0}, {}, {"p50_ms": 3.0}]
    assert rows["b"]["skipped"] == "no such package"
    rows = compare({"a": lambda row: row.values.update(p50_ms=9.0)}, "--only", "search: a")
    assert [rows[peer]["values"] for peer in "ac"] == [{"p50_ms": 9.0}, {"p50_ms": 3.0}]


def test_the_page_says_who_won_and_why():
    column = Column("p50_ms", "p50, ms")
    part = Part(
        "search",
        "Search",
        "About.",
        (column, Column("lost", "lost", None, of="added")),
        {"ours": "a process.", "fast": "keeps nothing.", "slow": "on disk."},
    )
    rows = [
        Row("search", "fast", "1 k", {"p50_ms": 0.5, "lost": 3, "added": 40}, {"p50_ms": 2.0}, "1.2"),
        Row("search", "slow", "1 k", {"p50_ms": 8.0}, {"p50_ms": 2.0}, "3", busy=True),
        Row("search", "absent", "1 k", skipped="no wheel | for this machine"),
    ]
    text = page.section([part], rows)
    assert "| fast (1.2) | **0.5 (0.25×)** | 3 of 40 |" in text
    assert "| slow (3) *busy* | 8 (4×) | – |" in text
    assert "| absent | did not run: no wheel / for this machine |" in text
    assert "- **fast**, ahead in p50, ms: keeps nothing." in text
    assert "- **slow**: on disk." in text
    drawn = page.plot([Highlight(row.name, column, "a search") for row in rows], {r.name: r for r in rows})
    assert drawn.count("<rect") == 2
    assert page.replaced(f"a{page.BEGIN}old{page.END}b", "new") == f"a{page.BEGIN}\n\nnew\n\n{page.END}b"


def test_recall_counts_the_true_neighbours_that_pass():
    class Peer:
        def ask(self, do, count, below):
            return {"answers": [[3, 1, 9]]}

    vectors = np.diag(np.arange(1, 13)).astype(np.float32)
    found = search.recall(Peer(), vectors, np.ones((1, 12), np.float32), np.arange(11), 7)
    assert found == pytest.approx(0.3)  # of rows 1 to 10


def test_page_readme_and_plot_agree_with_the_results():
    results = Results(command.RESULTS)
    for path, text in page.pages(
        [part.PART for part in command.PARTS], command.HIGHLIGHTS, results.rows
    ).items():
        assert path.read_text() == text, f"{path} differs: python -m benchmarks.compare --page"


SMALL = {
    search: search.Plan(rows=2000, rounds=1, seconds=0.1, kills=1),
    serving: serving.Plan(rounds=1, seconds=0.2, flood_s=0.3, dying_s=1.5),
    whole: whole.Plan(images=1, rounds=1, seconds=0.1, killed_after=1),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "peer", "lost"),
    [
        (search, "FAISS flat", "all"),
        (search, "ours, indexed", "nothing"),
        (serving, "ours", None),
        (whole, "union of masks", "nothing"),
    ],
)
def test_every_figure_of_a_part_is_measured(part, peer, lost, tmp_path):
    row = Row(part.PART.name, peer, "small")
    part.measure(SMALL[part], tmp_path / "compare", row)
    assert set(part.COLUMNS) - {"refusal_ms"} <= set(row.values)
    if lost is not None:
        assert row.values["lost"] == (row.values["acknowledged"] if lost == "all" else 0)
