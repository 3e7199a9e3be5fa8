"""The contenders of ``step.py``, each run in a process of its own: ``python -m contenders NAME FOLDER``."""
