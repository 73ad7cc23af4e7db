"""A student as ONNX: what cannot be written. What is written is run in tests/test_cli_models.py."""

import sys

import pytest

from samcorrect.lib.errors import DependencyError
from samcorrect.lib.networks.onnx_file import onnx_bytes
from samcorrect.lib.networks.student import Student, StudentConfig, build_network


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_with_what_installs_it(monkeypatch, package):
    config = StudentConfig(("lung",), (1,), 32)
    student = Student(build_network(config, seed=0), config, "d" * 64)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        DependencyError, match=r"written as ONNX with onnx and onnxscript.*pip install 'samcorrect\[onnx"
    ):
        onnx_bytes(student)
