"""A run for who must sign for it: what was asked, done, forgotten and can be brought back; and its words deleted."""

from duet_unlearn.audit.deletion import Purge, plan_purge, purge
from duet_unlearn.audit.record import SCHEMA, Audit, audit_record, write_audit

__all__ = ["SCHEMA", "Audit", "Purge", "audit_record", "plan_purge", "purge", "write_audit"]
