"""The frozen base: loading, the places adapters attach to, packed attention, the chunked head.

Nothing here knows a job, an adapter method or an optimiser.
"""
