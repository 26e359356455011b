import pickle

import pytest

from colqueue_client import errors
from colqueue_client.errors import ClientError, InputFailedError, ServiceError


def family(cls):
    return {cls, *(member for child in cls.__subclasses__() for member in family(child))}


def made(cls):
    if cls is ServiceError:
        return ServiceError(413, "too_large", "Input 3 is larger than 9 bytes.", index=3)
    if cls is InputFailedError:
        return InputFailedError("image_invalid", "no image", index=3)
    return cls("what happened", index=3)


@pytest.mark.parametrize("cls", sorted(family(ClientError), key=lambda cls: cls.__name__))
def test_every_error_comes_out_of_a_pickle_as_it_went_in(cls):
    error = made(cls)

    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own

    assert type(again) is cls
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
    assert again.index == 3


def test_the_tree_in_the_docstring_is_the_tree():
    assert {cls.__name__ for cls in family(ClientError)} == set(errors.__all__)
    assert all(name in errors.__doc__ for name in errors.__all__)


@pytest.mark.parametrize(
    ("message", "moved"),
    [
        ("Input processing error: input 3: no image", "Input processing error: input 20: no image"),
        ("Input 3 is larger than 3 bytes.", "Input 20 is larger than 3 bytes."),
        ("Invalid text inputs", "Invalid text inputs"),
    ],
)
def test_an_error_given_another_index_names_it_in_its_message_too(message, moved):
    error = ServiceError(400, "image_invalid", message, index=3).at(20)

    assert (error.status, error.code, error.index, error.message, error.args) == (
        400,
        "image_invalid",
        20,
        moved,
        (moved,),
    )
    assert "20" in str(error)
    assert "input 3" not in str(error)
