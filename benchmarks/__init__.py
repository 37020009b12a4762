"""Measures Pyventus beside Celery, the brokers' own clients and other task queues: ``make bench``."""
