"""``medx VERB ...``, the console script: each verb is one of the package's commands, such as ``python -m medx.run``."""

import difflib
import os
import runpy
import sys
from collections.abc import Sequence
from typing import NoReturn

import medx
from medx.output import CALLED

# The module of each verb, what its command line begins with, and what it does.
VERBS: dict[str, tuple[str, list[str], str]] = {
    "run": ("medx.run", [], "one experiment, or with -m a sweep of them"),
    "report": ("medx.report", [], "run what a study still lacks, and render its page"),
    "compare": ("medx.report", ["compare"], "two runs side by side"),
    "attack": ("medx.attacks", [], "what the epsilon of finished runs leaves possible"),
    "dossier": ("medx.dossier", [], "a page of finished runs for a board or a data protection officer"),
    "predict": ("medx.predict", [], "what a trained model says of the images in a folder"),
    "export": ("medx.export", [], "a trained model as ONNX"),
    "ui": ("medx.tracking", ["ui"], "MLflow's pages on this machine"),
    "sync": ("medx.tracking", ["sync"], "bring what waits below a folder to MLflow"),
    "data": ("medx.data", [], "look at your own images before anybody trains: data check DIR"),
    "site": ("medx.site", ["site"], "a hospital of a consortium: kits, policy, start, approve"),
    "coordinator": ("medx.site", ["coordinator"], "the consortium's coordinator: start FOLDER"),
    "submit": ("medx.site", ["submit"], "sign a study and run it with the hospitals"),
    "status": ("medx.site", ["status"], "runs of a coordinator"),
    "logs": ("medx.site", ["logs"], "what a coordinator's run says"),
    "stop": ("medx.site", ["stop"], "end a coordinator's run"),
    "audit": ("medx.audit", [], "what canaries prove against a configuration's claim"),
    "membership": ("medx.membership", [], "who was among the training records, by shadow runs"),
    "identity": ("medx.aggregation", ["identity"], "make a hospital's identity for secure sums"),
    "roster": ("medx.aggregation", ["roster"], "pin who takes part in secure sums, and how"),
    "show": ("medx.aggregation", ["show"], "check a roster and print its hash"),
}
HELP = """\
MedX: privacy-utility studies of federated medical image classification.

usage: medx VERB ...     medx VERB --help tells more

{verbs}

examples:
  medx run experiment=demo -m                 three budgets on drawn images
  medx run privacy.epsilon=1,5,10 -m          three budgets on PneumoniaMNIST
  medx run --config-dir DIR model=mine        an option of your own,
                                              DIR/model/mine.yaml
  medx run resume=FOLDER                      go on with a run that was stopped
  medx compare RUN RUN                        two output folders side by side

From Python: import medx; medx.run("dataset=phantom"). medx --version.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the verb says, in this process; ends with 2 and one line where there is no such verb."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given in (["--version"], ["version"]):
        print(f"medx {medx.__version__}")
    elif given[:1] in (["--help"], ["-h"], ["help"]):
        print(HELP.format(verbs="\n".join(f"  {verb:12}{what}" for verb, (_, _, what) in VERBS.items())), end="")
    elif given and given[0] in VERBS:
        module, first, _ = VERBS[given[0]]
        os.environ[CALLED] = "medx run"
        sys.argv[1:] = [*first, *given[1:]]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        refuse(given[0] if given else None)


def refuse(word: str | None) -> NoReturn:
    """End with what is accepted in place of the word."""
    accepted = f"accepted: {', '.join(VERBS)}, --help, --version"
    if word is None:
        message = f"a verb is missing; {accepted}"
    elif "=" in word or word.startswith("-"):
        message = f"{word}: the verb comes first, as in medx run {word}; {accepted}"
    else:
        close = difflib.get_close_matches(word, VERBS, n=1)
        message = f"{word}: no such verb; {f'did you mean {close[0]}; ' if close else ''}{accepted}"
    print(f"medx: {message}", file=sys.stderr)
    sys.exit(2)
