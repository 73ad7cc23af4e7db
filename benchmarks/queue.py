"""The command of approvals.py: a person who approves labels in the order of the queue, simulated.

example:
  python benchmarks/queue.py --images jsrt/images --labels jsrt/labels --test-images jsrt/test-images \\
      --test-labels jsrt/test-labels --protocol protocols/jsrt_lungs.yaml --json out/queue.json --plot out/queue.png
"""

import importlib.util
import sys
import sysconfig
from pathlib import Path

if __name__ == "__main__":
    from approvals import main
    from common import run_main

    sys.exit(run_main(main))

# A benchmark runs with this folder first on its path, so `import queue` of any library finds this file: it stands aside
# for the module of the standard library.
spec = importlib.util.spec_from_file_location("queue", Path(sysconfig.get_path("stdlib")) / "queue.py")
sys.modules["queue"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["queue"])
