"""Models of the Hugging Face Hub: addresses, loading, the cache, and one line for everything that can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import hub_server
import mergevq
from hub_server import Hub
from mergevq.allocation import LearnedAllocator, LearnedAllocatorConfig
from mergevq.errors import InputError
from mergevq.hub import HubAddress, parse_address, pin
from mergevq.serialization import read_config

UNKNOWN_COMMIT = "0123456789" * 4


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://me/tok", HubAddress(repository="me/tok")),
        ("hf://models/me/tok@v1", HubAddress(repository="me/tok", revision="v1")),
        ("hf://me/tok.v2@v1/a/b/", HubAddress(repository="me/tok.v2", revision="v1", folder="a/b")),
        ("hf://me/tok@refs/pr/3/a", HubAddress(repository="me/tok", revision="refs/pr/3", folder="a")),
        ("hf://me/tok@my%2Fbranch/a", HubAddress(repository="me/tok", revision="my/branch", folder="a")),
    ],
)
def test_an_address_is_read_and_written(text: str, address: HubAddress) -> None:
    assert parse_address(text, kind="model") == address
    assert parse_address(str(address), kind="model") == address


def test_a_data_set_has_an_address_too() -> None:
    text = "hf://datasets/me/images@refs/convert/parquet/small"
    found = parse_address(text, kind="dataset")
    assert (found.kind, found.revision, found.folder) == ("dataset", "refs/convert/parquet", "small")
    assert str(found) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf://me", "is no address of the Hub: write hf://owner/name"),
        ("hf://", "is no address of the Hub"),
        ("hf://me/", "is no address of the Hub"),
        ("hf://me/tok@", "is no address of the Hub"),
        ("hf://me/tok/../other", "is no address of the Hub"),
        ("hf://me/tok/a//b", "is no address of the Hub"),
        ("hf://me/tok?revision=v1", "is no address of the Hub"),
        ("hf://me/-tok", "is no address of the Hub"),
        ("hf://spaces/me/tok", "names one of the Hub's spaces: write hf://owner/name"),
        ("hf://datasets/me/images", "names a data set, and this takes a model: write hf://owner/name"),
        (
            "https://huggingface.co/me/tok",
            "'https://huggingface.co/me/tok' is no address of the Hub: write hf://owner/name",
        ),
        ("hf.co/me/tok", "is no address of the Hub"),
        ("HF://me/tok", "is no address of the Hub"),
        ("hf:/me/tok", "is no address of the Hub"),
        ("hf:me/tok", "is no address of the Hub"),
        (" hf://me/tok\n", "'hf://me/tok' is no address of the Hub"),
    ],
)
def test_what_is_no_address_is_refused_before_anything_is_asked(hub: Hub, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        mergevq.load(text)
    assert "\n" not in str(refusal.value)
    assert not hub.requests


@pytest.mark.parametrize(
    "text",
    [
        "hf://me:seKret@huggingface.co/me/tok",
        "https://me:seKret@huggingface.co/me/tok",
        "hf://me/tok?token=hf_seKretseKretseKret",
    ],
)
def test_a_secret_in_what_is_no_address_is_not_repeated(hub: Hub, text: str) -> None:
    with pytest.raises(InputError, match="is no address of the Hub") as refusal:
        mergevq.load(text)
    assert "seKret" not in str(refusal.value)


def test_a_tokenizer_of_the_hub_is_the_one_that_was_saved(
    hub: Hub, tokenizer_directory: Path, images: torch.Tensor
) -> None:
    hub.upload(tokenizer_directory, "me/tok")
    there, here = mergevq.load("hf://me/tok"), mergevq.load(tokenizer_directory)
    assert not there.training
    encoded, expected = there.encode(images, keep=9), here.encode(images, keep=9)
    assert torch.equal(encoded.indices, expected.indices)
    assert torch.equal(there.decode(encoded), here.decode(expected))


def test_a_revision_and_a_folder_choose_the_model(
    hub: Hub, tokenizer_directory: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    other = mergevq.create("test_gr")
    mergevq.save(other, tmp_path / "both" / "tokenizer")
    first = hub.upload(tmp_path / "both", "me/tok")
    hub.repository("me/tok").refs["v1"] = first
    hub.upload(tokenizer_directory, "me/tok")
    for address in ("hf://me/tok/tokenizer", "hf://me/tok@v1/tokenizer", f"hf://me/tok@{first}/tokenizer"):
        loaded = mergevq.load(address).state_dict()
        assert all(torch.equal(value, loaded[name]) for name, value in other.state_dict().items()), address
    with pytest.raises(InputError, match=r"hf://me/tok@v1 is no model of mergevq: it has no config\.json"):
        mergevq.load("hf://me/tok@v1")


def test_an_allocator_of_the_hub_is_the_one_that_was_saved(hub: Hub, tmp_path: Path) -> None:
    torch.manual_seed(0)
    allocator = LearnedAllocator(LearnedAllocatorConfig(hidden=4), (4, 9, 16), 8, "a" * 64)
    mergevq.save_allocator(allocator, tmp_path / "allocator")
    hub.upload(tmp_path / "allocator", "me/chooser")
    loaded = mergevq.load_allocator("hf://me/chooser")
    assert (loaded.menu, loaded.tokenizer_sha256) == (allocator.menu, allocator.tokenizer_sha256)
    assert all(
        torch.equal(value, loaded.state_dict()[name]) for name, value in allocator.state_dict().items()
    )
    with pytest.raises(
        InputError, match=r"^allocator: hf://me/chooser was trained for a tokenizer of weights aaa"
    ):
        mergevq.load_allocator("hf://me/chooser", tokenizer_sha256="b" * 64)
    with pytest.raises(InputError, match="is no address of the Hub: write hf://owner/name"):
        mergevq.load_allocator("hf:me/chooser")


def test_what_the_hub_holds_must_be_an_allocator(hub: Hub, tokenizer_directory: Path) -> None:
    hub.upload(tokenizer_directory, "me/tok")
    with pytest.raises(
        InputError, match=r"^allocator: 'hf://me/tok' holds something other than a learned allocator"
    ):
        mergevq.load_allocator("hf://me/tok")


def test_a_commit_that_is_in_the_cache_is_loaded_without_a_request(
    hub: Hub, tokenizer_directory: Path
) -> None:
    commit = hub.upload(tokenizer_directory, "me/tok")
    pinned = pin(parse_address("hf://me/tok", kind="model"))
    assert str(pinned) == f"hf://me/tok@{commit}"
    assert pinned.is_pinned
    mergevq.load(str(pinned))
    hub.requests.clear()
    mergevq.load(str(pinned))
    assert not hub.requests


@pytest.mark.parametrize("away", ["offline", "unreachable", "broken"])
def test_the_cache_serves_while_the_hub_is_away(
    hub: Hub, tokenizer_directory: Path, away: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.upload(tokenizer_directory, "me/tok")
    mergevq.load("hf://me/tok")
    take_away(hub, away, monkeypatch)
    assert mergevq.load("hf://me/tok").config == read_config(tokenizer_directory)


def take_away(hub: Hub, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif how == "broken":
        hub.broken = 501  # not one that is tried again for half a minute
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}",
        )


@pytest.mark.parametrize(
    ("away", "message"),
    [
        (
            "offline",
            "is not whole in this machine's cache, and HF_HUB_OFFLINE is set: unset it, or fetch it before",
        ),
        (
            "unreachable",
            r"not whole in this machine's cache, and http://127\.0\.0\.1:9 cannot be reached \(.*\): check the conn",
        ),
        ("broken", r"answers with status 501( \(broken\))?: try again later"),
    ],
)
@pytest.mark.parametrize("address", ["hf://me/tok", f"hf://me/tok@{UNKNOWN_COMMIT}"])
def test_what_is_not_in_the_cache_while_the_hub_is_away_is_one_line(
    hub: Hub, away: str, message: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(hub, away, monkeypatch)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # 23 s between its attempts
    with pytest.raises(InputError, match=message) as refusal:
        mergevq.load(address)
    assert str(refusal.value).startswith(address)
    assert "\n" not in str(refusal.value)


def test_what_the_hub_refuses_is_one_line_with_the_fix(hub: Hub, tokenizer_directory: Path) -> None:
    hub.upload(tokenizer_directory, "me/tok")
    hub.upload(tokenizer_directory, "me/secret")
    hub.repository("me/secret").private = True
    hub.upload(tokenizer_directory, "me/gated")
    hub.repository("me/gated").gated = True
    hub.repository("me/other").commit({"config.json": json.dumps({"model_type": "bert"}).encode()})
    hub.repository("me/half").commit({"config.json": (tokenizer_directory / "config.json").read_bytes()})
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    for address, message in {
        "hf://me/none": f"hf://me/none: there is no such repository on {hub.url}, or it is private: correct the name, or {log_in}",
        "hf://me/secret": f"hf://me/secret: there is no such repository on {hub.url}, or it is private: correct the name, or {log_in}",
        "hf://me/gated": f"hf://me/gated is gated: ask for access at {hub.url}/me/gated, then {log_in}",
        "hf://me/tok@v9": "hf://me/tok@v9: hf://me/tok has no revision 'v9': name a branch, a tag or a whole commit",
        f"hf://me/tok@{UNKNOWN_COMMIT}": f"has no revision '{UNKNOWN_COMMIT}': name a branch, a tag or a whole commit",
        "hf://me/half": "hf://me/half is no model of mergevq: it has no model.safetensors; `mergevq push` writes one",
    }.items():
        with pytest.raises(InputError) as refusal:
            mergevq.load(address)
        assert str(refusal.value).endswith(message)
        assert "\n" not in str(refusal.value)
    with pytest.raises(
        InputError, match=r"hf://me/other/config\.json describes 'None', not a 'mergevq tokenizer 1'"
    ):
        read_config("hf://me/other")


def test_a_token_opens_what_is_private_and_is_in_no_message(
    hub: Hub, tokenizer_directory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.upload(tokenizer_directory, "me/secret")
    hub.repository("me/secret").private = True
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    mergevq.load("hf://me/secret")
    monkeypatch.setenv("HF_TOKEN", "hf_of_someone_else")
    with pytest.raises(InputError, match="refuses the token in use") as refusal:
        mergevq.load("hf://me/secret@v2")
    said = str(refusal.value) + "".join(capfd.readouterr())
    assert "hf_of_someone_else" not in said
    assert hub_server.TOKEN not in said
