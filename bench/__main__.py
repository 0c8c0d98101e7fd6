"""`python -m bench`: instances compared, see run.py; `balance`, `cost`: see balance/run.py, cost/run.py."""

import sys

if sys.argv[1:2] == ["balance"]:
    from bench.balance.run import main

    sys.exit(main(sys.argv[2:]))
elif sys.argv[1:2] == ["cost"]:
    from bench.cost.run import main as weigh

    sys.exit(weigh(sys.argv[2:]))
else:
    from bench.run import main as compare

    sys.exit(compare())
