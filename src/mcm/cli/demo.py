"""`mcm demo`: students and teachers side by side on a web page."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter, validators

from mcm.cli.terminal import progress, say
from mcm.errors import UserError

INSTALL = 'pip install "motion-consistency[demo]"'
LOOPBACK = "127.0.0.1"
# The laboratory's world: what its teachers know.
EXAMPLES = (
    "a person in a red shirt and blue trousers waving in a park",
    "a person in a yellow shirt and green trousers jumping on a beach",
    "a person in a white shirt and purple trousers walking in a street, the camera pans left",
    "a person in a green shirt and red trousers kicking at night",
)

app = App(name="demo", help_epilogue="Example: mcm demo runs/mine --port 7860", help_format="plaintext")


@app.default
def demo(
    *models: Annotated[
        str,
        Parameter(
            show_default=False,
            help="students' or runs' folders, teachers' names, folders or hub ids [default: all of the pocket zoo]; a "
            "student's teacher comes with it",
        ),
    ],
    port: Annotated[int, Parameter(help="0 is any free one", validator=validators.Number(gte=0, lte=65535))] = 7860,
    host: Annotated[str, Parameter(help="address to listen on; 0.0.0.0 is the whole network")] = LOOPBACK,
    share: Annotated[
        bool, Parameter(negative="", show_default=False, help="also a public address, through gradio's servers")
    ] = False,
    run: Annotated[Path | None, Parameter(help="folder of a run to follow on the page's training tab")] = None,
    controlnet: Annotated[
        str | None, Parameter(help="folder or hub id of what follows poses [default: the pocket teacher's own]")
    ] = None,
    queue: Annotated[int, Parameter(help="requests that may wait", validator=validators.Number(gte=1))] = 16,
) -> None:
    """Open a web page that makes videos with students and teachers side by side, on this machine alone."""
    if find_spec("gradio") is None:
        raise UserError(f"the page needs gradio, which is not installed: {INSTALL}")
    from mcm.app.following import Run
    from mcm.app.making import Offer
    from mcm.app.serve import LOOPBACK as OWN
    from mcm.app.serve import free_port, served, wait
    from mcm.app.systems import load_systems
    from mcm.app.wanted import Limits
    from mcm.app.work import Workshop
    from mcm.pocket import sources, zoo

    followed = None if run is None else Run(run)
    number = free_port(host, port)  # before anything that takes long
    if share:
        say("warning: --share makes this page public: whoever has the address can use this machine to make videos")
    if host not in OWN:
        say(f"warning: --host {host} opens this page to the network, without a password")
    with progress() as told:
        systems = load_systems(models or [*zoo.students(), *zoo.teachers()], told)
    pocket = any(maker.model.name.startswith("pocket-") for maker in systems.values())
    offer = Offer(
        Workshop(systems, controlnet), Limits(queue=queue), sources.actions(), EXAMPLES if pocket else (), followed
    )
    with served(offer, host, number, share) as url:
        say(f"open {url} in a browser; Ctrl-C ends it")
        wait()
