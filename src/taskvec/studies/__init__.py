"""Protocols and analyses, one a file, in the order of work, of tables and of figures.

A new one is a file beside these (see ``study.py``) and a line here.
"""

from typing import Any

from taskvec.registry import Registry
from taskvec.studies.study import Study

STUDIES: Registry[type[Study[Any]]] = Registry("study", {})
