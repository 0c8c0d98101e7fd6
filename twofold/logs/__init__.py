"""Logs: access and predict records, the log writer and its sinks, messages for the operator."""
