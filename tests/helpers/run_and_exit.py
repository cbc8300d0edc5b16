"""Run a script as ``python script arguments`` does, and end without Python's finalization.

gloo's threads drop the tensors and callbacks of a collective a moment after it is done, for which
they need the GIL. Where Python is being finalized by then, it ends such a thread inside a
destructor, and the process aborts: on a busy machine one launch in twenty did. Processes of
multiprocessing, which the other tests start, end like this one.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.stdout.flush()
    os._exit(0)
