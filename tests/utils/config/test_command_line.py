from pathlib import Path

import pytest

from utils.config.command_line import prepared
from utils.errors import UserError

CONFIG = Path(__file__).parents[3] / "config"


@pytest.mark.parametrize(
    ("arguments", "made"),
    [
        (["ckpt_path=a/epoch=1.ckpt"], ['ckpt_path="a/epoch=1.ckpt"']),
        (["img_size_str=384,128"], ['img_size_str="384,128"']),
        (["img_size_str=(384,128)"], ['img_size_str="(384,128)"']),
        (["-m", "img_size_str=384,128", "seed=1,2"], ["-m", 'img_size_str="384,128"', "seed=1,2"]),
        (["-m", "img_size_str=384x128,256x128"], ["-m", "img_size_str=384x128,256x128"]),
        (["output_dir=/runs/of (me)"], ['output_dir="/runs/of (me)"']),
        (["run_name=Việt"], ['run_name="Việt"']),
        (["loss=irra", "-cn", "clip", "seed=3"], ["-cn", "clip", "loss=irra", "seed=3"]),
        (
            ["+loss/term@loss.terms.id=id", "~loss.terms.citc", "trainer.max_epochs="],
            ["+loss/term@loss.terms.id=id", "~loss.terms.citc", "trainer.max_epochs="],
        ),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_texts_get_the_quotes_that_they_need_and_all_else_stays(arguments: list[str], made: list[str]) -> None:
    assert prepared(arguments, CONFIG) == made
    assert prepared(made, CONFIG) == made


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--experiment=irra"], "options are written without dashes, experiment=irra;"),
        (["--seed", "3"], "--seed: options are written without dashes, seed=3;"),
        (["--experimental-rerun=x.pickle"], "--experimental-rerun=x.pickle: options are written without dashes"),
        (["experiment", "irra"], "experiment: an override is key=value without spaces, as in experiment=irra;"),
        (["seed", "=", "3"], "seed: an override is key=value without spaces, as in seed=3;"),
        (["run_name=a", "b"], "if it belongs to the previous value, quote both: 'run_name=a b'"),
        (["clip"], "clip: choose a config with -cn clip"),
        (["seed=1,2,3"], "seed=1,2,3: several values need -m (a sweep); a list is seed=[1,2,3]"),
        (["loss=irra,fmfa"], "loss=irra,fmfa: several values need -m (a sweep);"),
        (["trainer.max_epochs:=3"], "Hydra cannot read this (extraneous input ':'); a value with"),
        (["loss.name=a=b"], "inside those of the shell: 'loss.name=\"a=b\"'"),
        (["+experiment=irra"], "+experiment=irra: every config chooses experiment already; write experiment=irra,"),
        (["-cn"], "argument --config-name/-cn: expected one argument"),
        (["--cfg", "jobs"], "invalid choice: 'jobs'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_hydra_cannot_read_is_told_in_words(arguments: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        prepared(arguments, CONFIG)
    assert told in str(caught.value)
    assert len(str(caught.value)) <= 500
