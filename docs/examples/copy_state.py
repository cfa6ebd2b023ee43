"""Keeps a copy of which devices of one bridge are connected: copy_state.py AMQP_URL EVENTS_EXCHANGE BRIDGE_URL"""
import http.client, json, math, sys, time, urllib.request, pika, pika.exceptions
class Copy:
    def __init__(self, url):
        self.url, self.run, self.over, self.seq = url, None, set(), 0
        self.devices, self.known, self.expires = {}, False, 0.0  # Address: epoch. Whether that is known to be true.
    def snapshot(self):
        try:
            state = json.load(urllib.request.urlopen(self.url + "/devices?snapshot", timeout=10))
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.run = None  # The next heartbeat is the time to try again.
            return self.lose(error)
        self.known, self.run, self.seq = self.known and state["run"] == self.run, state["run"], state["seq"]
        online = {it["address"]: it["epoch"] for it in state["devices"] if it["online"]}
        for address in self.devices.keys() | online.keys():
            self.set(address, online.get(address))
        self.beat(state["expires_ms"] / 1000)
    def hear(self, kind, event):
        if event["run"] not in (self.run, *self.over) and (self.run or kind == "bridge"):
            self.snapshot()  # The bridge was started again, or was not there.
            self.over |= {event["run"]} - {self.run} if self.run else set()  # Late, or of another bridge.
        if event["run"] != self.run:
            return
        if event["seq"] > self.seq + (kind == "presence"):
            self.snapshot()  # Events were lost. This one is in it.
        elif kind == "bridge":  # At its end it says so, behind the end of each device.
            self.beat(event["expires_ms"] / 1000 if event["online"] else math.inf)
        elif event["seq"] > self.seq:
            self.seq = event["seq"]
            if event["epoch"] >= self.devices.get(event["address"], 0):
                self.set(event["address"], event["epoch"] if event["online"] else None)
    def set(self, address, epoch):
        if self.devices.pop(address, None) != epoch:
            print(f"online {address} {epoch}" if epoch else f"offline {address}", flush=True)
        self.devices.update({address: epoch} if epoch else {})
    def beat(self, seconds):
        print(end="" if self.known else f"known {self.run}\n", flush=True)
        self.known, self.expires = True, time.monotonic() + seconds
    def lose(self, why):
        print(end=f"unknown: {why}\n" if self.known else "", flush=True)
        self.known = False
def follow(copy, amqp, exchange):
    channel = pika.BlockingConnection(pika.URLParameters(amqp)).channel()
    queue = channel.queue_declare("", exclusive=True).method.queue
    for key in ("presence.#", "bridge.#"):
        channel.queue_bind(queue, exchange, key)
    copy.snapshot()  # Only now: whatever happens from here on waits in the queue.
    for method, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=1):
        if method:
            copy.hear(method.routing_key.split(".")[0], json.loads(body))
        if time.monotonic() > copy.expires:
            copy.lose("no heartbeat")
copy = Copy(sys.argv[3])
while True:
    try:
        follow(copy, *sys.argv[1:3])
    except (pika.exceptions.AMQPError, OSError) as error:
        copy.lose(error)
        time.sleep(1)
