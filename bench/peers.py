"""Other gateways beside ours: the same upstream, the same requests, one worker each, on the same core in turn.

`make bench-peers` installs LiteLLM's proxy (from PyPI) and Portkey's gateway (from npm; that needs Node.js) in
environments of their own under `bench/.peers/`, once, and drives them, ours and a bare aiohttp pass-through in turn.
Ours has everything on, as in `passing.py`. Theirs run as their documentation starts them, with nothing added: LiteLLM
with a list of one model and a master key, without a database; Portkey without keys of its own, its provider named in
headers. What they could do beside that is off, which is to their advantage.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from figures import Figure, arguments, deliver
from load import QUESTION, Load, Seen, closed_loop, default_client
from processes import free_ports, running, server_cores, wait_until_ready, workbench
from rounds import interleaved, rates, ratios
from servers import HERE, Server, ask, bare, gateway, upstream

LITELLM, PORTKEY = "litellm[proxy]==1.106.2", "@portkey-ai/gateway@1.15.2"
HOME = HERE / ".peers"
RESULTS = HERE / "results" / "peers.json"
INSTALL_SECONDS = 900.0
BARE, OURS = "bare pass-through", "Tollgate, governed, embedded"
LITE, PORT = "LiteLLM proxy", "Portkey gateway"
TARGETS = {LITE: 40.0, PORT: 6.0}
"""How many times as many requests a second ours has to pass on."""
MASTER_KEY = "sk-bench-master"
LITELLM_CONFIG = """
model_list:
  - model_name: gpt-4o-mini
    litellm_params:
      model: openai/gpt-4o-mini
      api_base: %(above)s
      api_key: sk-upstream
litellm_settings:
  telemetry: false
general_settings:
  master_key: %(key)s
"""


def main() -> None:
    """Install what is missing, measure, print, and write the same as JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, help="5, or 2 where it is to be quick")
    parser.add_argument("--seconds", type=float, help="of one drive; 3, or 1 where it is to be quick")
    parser.add_argument("--client", choices=["wrk", "own"], default=default_client())
    chosen = parser.parse_args()
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise SystemExit("Portkey's gateway needs node and npm: install Node.js 20 or newer")
    install(npm)
    rounds = chosen.rounds or (2 if chosen.quick else 5)
    seconds = chosen.seconds or (1.0 if chosen.quick else 3.0)
    deliver(measure(rounds, seconds, chosen.client), chosen.json or RESULTS)


def install(npm: str) -> None:
    """Both, each in an environment of its own; nothing where that was done before."""
    done = HOME / ".installed"
    wanted = f"{LITELLM}\n{PORTKEY}\n"
    if done.is_file() and done.read_text() == wanted:
        return
    shutil.rmtree(HOME, ignore_errors=True)
    node = HOME / "portkey"
    node.mkdir(parents=True)
    print(f"Installing {LITELLM} and {PORTKEY} in {HOME}, once", file=sys.stderr, flush=True)
    for command in (
        (sys.executable, "-m", "venv", str(HOME / "litellm")),
        (str(HOME / "litellm" / "bin" / "python"), "-m", "pip", "install", "--quiet", LITELLM),
        (npm, "install", "--prefix", str(node), "--no-audit", "--no-fund", "--ignore-scripts", PORTKEY),
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=INSTALL_SECONDS)
    done.write_text(wanted)


def measure(rounds: int, seconds: float, client: str) -> list[Figure]:
    """All of them in turn."""
    with workbench() as place, ExitStack() as stack:
        servers = {server.name: server for server in start(stack, place)}

        def drive(name: str) -> Seen:
            return closed_loop(servers[name], Load(), seconds, client)

        for name in servers:
            drive(name)
        seen = interleaved(list(servers), drive, rounds)
    figures = rates(seen)
    for name, target in TARGETS.items():
        figures += ratios(seen, name, {OURS: target})
    return figures


def start(stack: ExitStack, place: Path) -> list[Server]:
    """All of them before one upstream, each having answered once."""
    above = stack.enter_context(upstream(place))
    servers = [
        stack.enter_context(bare(above, BARE)),
        stack.enter_context(gateway(place / "tollgate", OURS, above.base_url)),
        stack.enter_context(litellm(place, above)),
        stack.enter_context(portkey(above)),
    ]
    for server in servers:
        ask(server, QUESTION.encode())
    return servers


@contextmanager
def litellm(place: Path, above: Server) -> Iterator[Server]:
    """LiteLLM's proxy with one worker."""
    port, _ = free_ports()
    config = place / "litellm.yaml"
    config.write_text(LITELLM_CONFIG % {"above": above.base_url, "key": MASTER_KEY})
    here = ("--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1")
    # It would look for newer prices at its start.
    alone = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with running(str(HOME / "litellm" / "bin" / "litellm"), *here, cores=server_cores(), **alone) as child:
        wait_until_ready(f"http://127.0.0.1:{port}/health/liveliness", child)
        yield Server(LITE, port, psutil.Process(child.pid), {"Authorization": f"Bearer {MASTER_KEY}"})


@contextmanager
def portkey(above: Server) -> Iterator[Server]:
    """Portkey's gateway, without its console."""
    port, _ = free_ports()
    script = HOME / "portkey" / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    headers = {
        "Authorization": "Bearer sk-upstream",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": above.base_url,
    }
    with running("node", str(script), f"--port={port}", "--headless", cores=server_cores()) as child:
        wait_until_ready(f"http://127.0.0.1:{port}/", child)
        yield Server(PORT, port, psutil.Process(child.pid), headers)


if __name__ == "__main__":
    main()
