"""Train a recipe as a plain Ray job; `mergevq submit -- train RECIPE …` does the same and more.

    RAY_AUTH_MODE=token ray job submit --address http://HEAD:8265 --working-dir . --runtime-env-json '{"env_vars": {
      "PYTHONPATH": "platform", "MERGEVQ_HOME": "/SHARED/mergevq", "RAY_JOB_STOP_WAIT_TIME_S": "600"}}' \\
      -- python jobs/train.py RECIPE data.path=/SHARED/IMAGES [a.b=c …]

PYTHONPATH is relative to the uploaded folder; the last variable is the time that a stopped job has for its checkpoint.
"""

import sys

from mergevq_platform.cli import main

main(["train", *sys.argv[1:]])
