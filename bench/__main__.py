"""`python -m bench` compares instances, see run.py; `python -m bench balance`: see balance/run.py."""

import sys

if sys.argv[1:2] == ["balance"]:
    from bench.balance.run import main

    sys.exit(main(sys.argv[2:]))
else:
    from bench.run import main as compare

    sys.exit(compare())
