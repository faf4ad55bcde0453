"""Does a test catch it? Central lines are broken one by one: python tests/bench/mutations.py

Each line is changed in a copy of the clone, and the tests named beside it run there. The exit code
is 1 where they pass all the same.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

# What is broken: module, line, what it becomes, and who has to notice.
MUTATIONS = {
    "label correction": (
        "annotations",
        "pair] = songs.loc[rows, pair[::-1]]",
        "pair] = songs.loc[rows, pair]",
        "test_data.py::test_exchanged_labels_and_spreads_are_exchanged_back_and_no_others",
    ),
    "split": (
        "splitting",
        'artists.where(artists != "", "\\0" + contents)',
        "contents",
        "test_data.py::test_an_artist_belongs_to_one_part",
    ),
    "CCC": (
        "metrics",
        "functional.concordance_corrcoef(p, y)",
        "functional.pearson_corrcoef(p, y)",
        "test_evaluation.py::test_scores_agree_with_their_formulas",
    ),
    "Frechet distance": (
        "distance",
        "float(total - 2 * root)",
        "float(total - root)",
        "test_quality.py::test_frechet_is_the_textbooks",
    ),
    "clipping, generators": (
        "movers",
        "clip_grad_norm_(self.network.parameters(), self.clip)",
        "clip_grad_norm_(self.network.parameters(), 1e9)",
        "test_gan.py::test_clipping_bites_after_measuring",
    ),
    "clipping, predictor": (
        "vit_training",
        "clip_grad_norm_(weights, clip_norm)",
        "clip_grad_norm_(weights, 1e9)",
        "test_vit.py::test_gradients_of_the_predictor_are_clipped",
    ),
    "unfreezing": (
        "vit",
        "layers[-blocks:].requires_grad_(True)",
        "layers[:blocks].requires_grad_(True)",
        "test_vit.py::test_thawing_moves_exactly_the_last_blocks_and_the_last_norm",
    ),
    "cache key": (
        "data",
        'b"log-mel 4" + audio.model_dump_json().encode()',
        'b"log-mel 4"',
        "test_data.py::test_other_audio_settings_are_decoded_anew",
    ),
    "path check": (
        "core",
        '".." in Path(name).parts',
        "False",
        "test_untrusted.py::test_an_artifact_lies_in_its_run",
    ),
    "loss weights": (
        "gan_training",
        "weights = 1 + self.gan.swapped, 1, self.gan.swapped",
        "weights = 1, 1, self.gan.swapped",
        "test_gan.py::test_as_much_is_told_to_be_true_as_false",
    ),
    "balance rule": (
        "gan_training",
        "return max(steps - 1, gan.min_steps)",
        "return steps",
        "test_gan.py::test_balance_rule_at_its_bounds",
    ),
}


def run_tests(clone: Path, tests: list[str]) -> subprocess.CompletedProcess:
    "Run tests in a clone; its modules are what they import."
    # Without kept bytecode: it is told apart by second and size, and mutations come quickly.
    env = os.environ | {"PYTHONPATH": str(clone), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += [f"tests/{test}" for test in tests]
    return subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True)


def main() -> None:
    "Break each line, run its tests, print a table, and say what survived."
    survived = []
    with tempfile.TemporaryDirectory() as place:
        leave = shutil.ignore_patterns(".*", "runs", "__pycache__", "*.egg-info")
        clone = Path(shutil.copytree(ROOT, Path(place) / "clone", ignore=leave))
        whole = run_tests(clone, [test for *_, test in MUTATIONS.values()])
        if whole.returncode:
            sys.exit(f"the tests fail without any mutation:\n{whole.stdout[-3000:]}")
        for name, (module, old, new, test) in MUTATIONS.items():
            path = clone / f"musemo/{module}.py"
            text = path.read_text()
            if text.count(old) != 1:
                sys.exit(f"{name}: {module}.py has {old!r} {text.count(old)} times, not once")
            path.write_text(text.replace(old, new))
            found = run_tests(clone, [test])
            path.write_text(text)
            caught = found.returncode == 1  # pytest: tests ran, and some failed
            survived += [] if caught else [name]
            print(f"{name:22} {'caught' if caught else 'SURVIVED':9} {test}", flush=True)
    sys.exit(f"survived: {', '.join(survived)}" if survived else 0)


if __name__ == "__main__":
    main()
