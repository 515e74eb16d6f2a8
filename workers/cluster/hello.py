"""What a node says of itself before it is used, and why it may be refused."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from workers.architectures import ARCHITECTURE_VERSIONS, CURRENT_VERSION, load_architecture
from workers.message_codec import Decoder, MalformedMessage, encode
from workers.processes.devices import count_cores, free_memory_bytes

PROTOCOL_VERSION = 2
"""Of what head and nodes send to each other; a change that the other side does not understand raises it."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The versions that must be equal everywhere, and what the node has."""

    protocol: int
    package: str
    architectures: str
    """Of which it can evaluate models, as a comma list."""
    numerics: str
    """Of the code that makes the numbers."""
    torch: str
    """With the build, such as 2.13.0+cpu."""
    arrgen: str
    """Of soma-arrgen, which makes the noise."""
    num_cores: int
    free_memory_bytes: int
    data_dir: str
    """The node's own folder, absolute."""
    gpu: str
    """Index of the actor's GPU as the node counts them; empty for a CPU."""


def own_hello(data_dir: Path, gpu: str = "") -> Hello:
    """This machine's. Imports no torch."""
    return Hello(
        protocol=PROTOCOL_VERSION,
        package=version("soma-eval"),
        architectures=",".join(ARCHITECTURE_VERSIONS),
        numerics=load_architecture(CURRENT_VERSION).NUMERICS_VERSION,
        torch=version("torch"),
        arrgen=version("soma-arrgen"),
        num_cores=count_cores(),
        free_memory_bytes=free_memory_bytes(),
        data_dir=str(data_dir),
        gpu=gpu,
    )


def refusal(ours: Hello, theirs: Hello) -> str:
    """Why a node with this hello is not used, as a sentence without its subject; empty when it may be."""
    pairs = (
        ("the cluster protocol", str(ours.protocol), str(theirs.protocol)),
        ("soma-eval", ours.package, theirs.package),
        ("architectures", ours.architectures, theirs.architectures),
        ("numerics", ours.numerics, theirs.numerics),
        ("torch", _without_build(ours.torch), _without_build(theirs.torch)),
        ("soma-arrgen", ours.arrgen, theirs.arrgen),
    )
    for what, our_version, their_version in pairs:
        if our_version != their_version:
            return f"it has version {their_version} of {what}, and the head has {our_version}"
    return ""


def read_hello(frame: bytes) -> Hello:
    """A hello as it travels. Raises MalformedMessage, as for the hello of another version."""
    messages = Decoder(Hello).feed(frame)
    if len(messages) != 1:
        raise MalformedMessage("one hello was expected")
    hello: Hello = messages[0]
    return hello


def write_hello(hello: Hello) -> bytes:
    """The hello as it travels."""
    return encode(hello)


def _without_build(torch_version: str) -> str:
    """A CPU's and a GPU's build of one version may work together: an evaluation stays on devices of one kind."""
    return torch_version.partition("+")[0]
