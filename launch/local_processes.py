"""Run one gemma-train command as several processes of this machine, joined over loopback.

    python launch/local_processes.py --processes 2 --devices 2 -- train configs/quickstart.py ...

Each process simulates `--devices` CPU devices; the first one's words are shown. `--mesh.runtime
many_processes` is added. Ends with the exit code of the first process that fails, ending the rest.
"""

import argparse
import os
import socket
import subprocess
import sys
import time


def main() -> int:
    parser = argparse.ArgumentParser(description="gemma-train in several processes of one machine")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of each process")
    parser.add_argument("words", nargs="+", help="what follows gemma-train")
    arguments = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={arguments.devices}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(arguments.processes),
    }
    command = [sys.executable, "-m", "gemma_train", *arguments.words]
    processes = [
        subprocess.Popen(
            [*command, "--mesh.runtime", "many_processes"],
            env={**environment, "JAX_PROCESS_ID": str(number)},
            stdout=None if number == 0 else subprocess.DEVNULL,
        )
        for number in range(arguments.processes)
    ]
    return watch(processes)


def watch(processes: list[subprocess.Popen]) -> int:
    """Wait for all; when one fails, end the others and return its exit code."""
    try:
        while any(process.poll() is None for process in processes):
            failed = [process for process in processes if process.poll()]
            if failed:
                return failed[0].returncode
            time.sleep(0.2)
        return max(abs(process.returncode) for process in processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()


if __name__ == "__main__":
    sys.exit(main())
