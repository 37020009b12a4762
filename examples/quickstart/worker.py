from celery import Celery
from pyventus.emitters.celery import CeleryEventEmitter

# To ensure Python recognizes the existence of the event handlers, we need to import them.
from quickstart.event_handlers import slow_sync_event_callback, slow_async_event_callback

# Using Redis as a broker and backend connector for example purpose.
app: Celery = Celery(
    "worker",
    broker="redis://default:redispw@localhost:6379",
    backend="redis://default:redispw@localhost:6379",
)

# Optional configuration, see the Celery app user guide.
app.conf.update(result_expires=3600)

# Set the accepted content type to "application/x-python-serialize" in the Celery app.
app.conf.accept_content = ["application/json", "application/x-python-serialize"]

# Create the celery event emitter queue.
celery_event_emitter_queue = CeleryEventEmitter.Queue(celery=app, secret="secret-key")

if __name__ == "__main__":
    app.start()
