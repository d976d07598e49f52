"""The arithmetic of the benchmarks, over fixtures: what a row says, what is called a change, what is refused."""
import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "benchmarks"))
from support import compare, driver, interleave, rows  # noqa: E402


def row(p50, *, system="accel", case="L4", rounds=None, unit="ms", world_size=2):
    return {"benchmark": "step_time", "case": case, "system": system, "world_size": world_size, "unit": unit,
            "p10": 0.9 * p50, "p50": p50, "p99": 2 * p50, "ratio_to": {}, "rounds": rounds or []}  # fmt: skip


def keyed(*many):
    return {(row["benchmark"], row["case"], row["system"], row["world_size"]): row for row in many}


class Compare(unittest.TestCase):
    def said(self, old, new):
        return "\n".join(compare.report(keyed(*old), keyed(*new)))

    def test_a_change_within_what_the_rounds_differ_by_is_noise(self):
        old, new = row(1.0, rounds=[0.9, 1.0, 1.1]), row(1.12, rounds=[1.1, 1.12, 1.13])
        self.assertIn("within noise (+12.0% of +-20.0%)", self.said([old], [new]))

    def test_a_change_beyond_it_has_a_direction_and_a_size(self):
        quiet = [1.0, 1.0, 1.01]
        self.assertIn("faster by 12%", self.said([row(1.0, rounds=quiet)], [row(0.88, rounds=[0.88, 0.88, 0.88])]))
        self.assertIn("slower by 50%", self.said([row(1.0, rounds=quiet)], [row(1.5, rounds=[1.5, 1.5, 1.5])]))

    def test_without_rounds_the_distance_of_p10_from_p50_is_the_noise(self):
        self.assertIn("within noise", self.said([row(1.0)], [row(1.09)]))
        self.assertIn("slower by 20%", self.said([row(1.0)], [row(1.2)]))

    def test_two_percent_is_never_a_change(self):
        self.assertIn("within noise", self.said([row(1.0, rounds=[1.0] * 3)], [row(1.019, rounds=[1.019] * 3)]))

    def test_rows_of_one_file_only_are_listed(self):
        said = self.said([row(1.0), row(1.0, case="gone")], [row(1.0), row(1.0, case="new")])
        self.assertIn("gone, accel at 2: only in the old file", said)
        self.assertIn("new, accel at 2: only in the new file", said)
        self.assertIn("1 rows in both files, 0 changed", said)

    def test_units_are_compared_with_their_like(self):
        self.assertIn("cannot be compared", self.said([row(1.0)], [row(1.0, unit="us")]))

    def test_a_line_that_is_no_row_is_named(self):
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.write(json.dumps(row(1.0)) + "\n" + '{"benchmark": "step_time"}\n')
            file.flush()
            with self.assertRaisesRegex(SystemExit, "line 2 is no row of a benchmark"):
                compare.read(file.name)


class Rows(unittest.TestCase):
    def test_a_ratio_of_2_says_that_this_system_takes_half_of_the_other(self):
        related = rows.relate([rows.Row("step_time", "L4", "accel", 2, "ms", [[1, 1, 1]]),
                               rows.Row("step_time", "L4", "pytorch_ddp", 2, "ms", [[2, 2, 2]])])  # fmt: skip
        written = [json.loads(row.json()) for row in related]
        self.assertEqual(written[0]["ratio_to"], {"pytorch_ddp": 2.0})
        self.assertEqual(written[1]["ratio_to"], {"accel": 0.5})

    def test_quantiles_are_over_all_rounds_and_rounds_have_their_medians(self):
        one = rows.Row("step_time", "L4", "accel", 2, "ms", [[1, 2, 3], [4, 5, 6], [7, 8, 9, 10, 11]])
        self.assertEqual((one.p10, one.p50, one.p99), (2, 6, 10.9))
        self.assertEqual(one.rounds, [2, 5, 9])

    def test_numbers_have_three_digits(self):
        self.assertEqual([rows.significant(x) for x in (0.01234, 1.234, 12.34, 1234.5, 0)],
                         ["0.0123", "1.23", "12.3", "1234", "0"])  # fmt: skip

    def test_a_variant_of_the_peers_stands_beside_accel(self):
        cells = [interleave.Cell("accel", {}), interleave.Cell("pytorch_ddp", {}),
                 interleave.Cell("pytorch_ddp", {}, "fused")]  # fmt: skip
        for cell, ns in zip(cells, (1e6, 3e6, 2e6)):
            cell.rounds = [[ns]] * 3
        found = interleave.rows_of("step_time", "L4", cells, 2)
        self.assertEqual([(row.case, row.system, row.p50) for row in found],
                         [("L4", "accel", 1), ("L4", "pytorch_ddp", 3),
                          ("L4, fused", "pytorch_ddp", 2), ("L4, fused", "accel", 1)])  # fmt: skip


class SameWork(unittest.TestCase):
    def cells(self, **losses):
        cells = []
        for system, of_ranks in losses.items():
            cells.append(interleave.Cell(system, {"model": "mlp"}))
            cells[-1].losses = of_ranks
        return cells

    def test_equal_losses_pass(self):
        self.assertLess(interleave.check_losses(self.cells(accel=[[1, 0.5], [2, 1.5]], pytorch_ddp=[[1, 0.5], [2, 1.5]],
                                                           libtorch=[[1, 0.7], [2, 1.1]]), "L4"), 1e-9)  # fmt: skip

    def test_a_system_with_other_losses_is_refused(self):
        with self.assertRaisesRegex(interleave.Different, "L4: the losses of pytorch_ddp differ from those of accel"):
            interleave.check_losses(self.cells(accel=[[1, 0.5], [2, 1.5]], pytorch_ddp=[[1, 0.5], [2, 1.51]]), "L4")

    def test_losses_that_cannot_tell_are_refused(self):
        with self.assertRaisesRegex(interleave.Different, "do not tell whether gradients are averaged"):
            interleave.check_losses(self.cells(accel=[[1, 0.5], [2, 1.5]], libtorch=[[1, 0.5], [2, 1.5]]), "L4")

    def test_losses_that_are_no_numbers_are_refused(self):
        nan = float("nan")
        with self.assertRaises(interleave.Different):
            interleave.check_losses(self.cells(accel=[[1, nan]], pytorch_ddp=[[1, nan]]), "L4")


class Options(unittest.TestCase):
    def test_every_file_begins_with_its_question(self):
        self.assertGreaterEqual(len(driver.names()), 8)
        for name in driver.names():
            self.assertTrue(driver.question(name).endswith("?"), name)


if __name__ == "__main__":
    unittest.main()
