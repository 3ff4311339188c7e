"""Listening, admission and negotiation: the only place that knows pynetdicom's server side."""
