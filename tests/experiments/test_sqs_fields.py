"""Fields of config.sqs: every unknown, unused or bad field is named with its remedy."""

import json
import re

import pytest
from ml_collections import ConfigDict

from experiments.calibrate import calibrate
from experiments.comparison.post_training import PEERS
from experiments.configs import base, sqs_fields
from experiments.configs.sqs_fields import problems, require_valid, reset_unused
from experiments.configs.validation import require_trainable
from experiments.training.ablations import MISTAKES
from experiments.training.pipeline import run_trainings


def recipe(**changes):
    sqs = base.default_recipe()
    sqs.update(changes)
    return sqs


@pytest.mark.parametrize("make", [base.default_recipe, base.paper_recipe])
def test_recipes_are_valid(make):
    assert not list(problems(make()))


@pytest.mark.parametrize("method", sorted(sqs_fields.UNUSED))
def test_a_recipe_that_was_read_from_json_has_no_other_problems(method):
    sqs = base.default_recipe()
    sqs.method = method
    reset_unused(sqs)
    assert list(problems(ConfigDict(json.loads(sqs.to_json())))) == list(problems(sqs))


def test_names_of_peers_and_mistakes_are_those_of_the_code():
    assert set(sqs_fields.PEERS) == set(PEERS)
    assert set(sqs_fields.MISTAKES) == set(MISTAKES)


def test_every_field_has_a_constraint_that_its_default_meets():
    defaults = sqs_fields._flat(base.default_recipe())
    assert defaults.keys() == sqs_fields._CONSTRAINTS.keys()
    for fields in sqs_fields.UNUSED.values():
        assert fields <= defaults.keys()


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("sparsty", 0.9, "use config.sqs.sparsity"),
        ("colour", "red", "remove it"),
        ("components", 0, "an integer of at least 1"),
        ("epochs", 0.0, "be positive"),
        ("sparsity", 1.0, r"lie in \[0, 1\)"),
        ("prior_inclusion", 1.0, r"lie in \(0, 1\)"),
        ("kl_weight", float("nan"), "not be negative"),
        ("kl_weight", float("inf"), "not be negative"),
        ("order", "sideways", "'together', 'prune_first'"),
        ("start", "awqq", "'weights', 'calibration'"),
        ("sensitivity", "hessian", "'scale', 'fisher'"),
        ("pattern", "(", "regular expression"),
        ("mistakes", ("typo",), "'half_bernoulli'"),
        ("dense_dtype", "int8", "floating dtype"),
        ("prune_every", 0, "at least 1"),
        ("warmup", None, "lie in"),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_the_remedy(field, value, remedy):
    sqs = recipe(**{field: value})
    message = rf"config\.sqs\.{field} is {re.escape(repr(value))}.*{remedy}"
    with pytest.raises(ValueError, match=message):
        require_valid(sqs)
    config = base.experiment()
    config.sqs = sqs
    with pytest.raises(ValueError, match=message):
        require_trainable(config)


def test_a_misspelled_learning_rate_is_named():
    sqs = recipe()
    sqs.learning_rate.locs = 1e-3
    with pytest.raises(ValueError, match=r"\.locs .* use config\.sqs\.learning_rate\.loc\."):
        require_valid(sqs)


def test_a_missing_field_is_named():
    sqs = recipe()
    del sqs["refit"]
    with pytest.raises(ValueError, match=r"config\.sqs\.refit is missing.*default_recipe.*True"):
        require_valid(sqs)


def test_a_missing_field_beside_config_sqs_is_named():
    config = base.experiment()
    del config.accumulate
    with pytest.raises(ValueError, match=r"config\.accumulate is missing; it must be an integer"):
        require_trainable(config)


def test_windows_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"config\.sqs\.window_count is 2.*'outlier'.*>= 3"):
        require_valid(recipe(window_kind="outlier", window_count=2))


@pytest.mark.parametrize(
    ("method", "field", "value"),
    [
        ("dgms", "sparsity", 0.5),
        ("dgms", "kl_weight", 0.5),
        ("dgms", "target_bytes", 9000),
        ("codeq", "prune_every", 1),
        ("codeq", "temperature_end", 0.5),
        ("codeq_mixed", "start", "calibration"),
        ("codeq_mixed", "prior_scale", 2.0),
    ],
)
def test_a_field_that_the_method_does_not_use_is_named(method, field, value):
    sqs = recipe(method=method, estimator="mean", learning_rate={"spread": 1e-3})
    require_valid(sqs)
    default = sqs[field]
    sqs[field] = value
    with pytest.raises(
        ValueError,
        match=rf"config\.sqs\.{field} is {value!r}, but method '{method}' does not use it: use its "
        rf"default, {default!r}",
    ):
        require_valid(sqs)
    reset_unused(sqs)
    require_valid(sqs)
    assert sqs[field] == default


def test_a_bad_field_is_named_before_any_data_are_read(tmp_path):
    config = base.experiment()
    config.data.name, config.data.directory = "absent", str(tmp_path)
    config.sqs.sparsty = 0.9
    config.sqs.target_bytes = 9000
    for command in (run_trainings, calibrate):
        with pytest.raises(ValueError, match=r"config\.sqs\.sparsty is 0\.9"):
            command(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_all_problems_are_listed_at_once():
    sqs = recipe(method="codeq", epochs=-1.0, sparsity=0.5)
    with pytest.raises(ValueError, match=r"config\.sqs cannot be used") as error:
        require_valid(sqs)
    for field in ("epochs", "sparsity", "estimator", "learning_rate.spread"):
        assert f"config.sqs.{field} is" in str(error.value)
