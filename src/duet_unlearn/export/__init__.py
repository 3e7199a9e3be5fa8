"""A run's student as a folder that others load: whole or as an adapter, with its model card."""

from duet_unlearn.export.folder import Exported, ExportOptions, export

__all__ = ["ExportOptions", "Exported", "export"]
