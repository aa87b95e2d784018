import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState


@pytest.fixture(autouse=True)
def one_accelerator_a_test():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
