from pyventus import EventEmitter
from pyventus.emitters.celery import CeleryEventEmitter

from quickstart.worker import celery_event_emitter_queue

if __name__ == "__main__":
    event_emitter: EventEmitter = CeleryEventEmitter(queue=celery_event_emitter_queue)
    event_emitter.emit("StringEvent")
