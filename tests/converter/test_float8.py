"""Float8 products by torchao, emulated: losses and gradients near the plain ones."""

from __future__ import annotations

import pytest

from tests.converter import lab

pytestmark = pytest.mark.extras


def trained(kind, folder, model):
    arguments = f"converter=[float8] converter.float8.emulate=true converter.float8.recipe={kind}"
    return lab.train_each({"plain": "checkpoint=[]", "float8": f"{arguments} checkpoint=[]"}, folder, model)


@pytest.mark.parametrize("kind", ["tensorwise", "rowwise"])
def test_its_losses_are_near_the_plain_ones(kind, tmp_path):
    lab.warm()
    model = lab.save_model(tmp_path / "model")
    found = lab.in_ranks(1, trained, kind, tmp_path, model)
    plain, rounded = found["plain"], found["float8"]
    assert rounded["losses"] != plain["losses"]
    assert rounded["losses"] == pytest.approx(plain["losses"], rel=5e-3)
    assert rounded["norms"] == pytest.approx(plain["norms"], rel=0.1)
    assert all(not value.equal(plain["weights"][name]) for name, value in rounded["weights"].items() if "proj" in name)
