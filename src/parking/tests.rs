use super::*;
use crate::order::tests::facts;

const RETURNS_WITHIN: Duration = Duration::from_secs(30);

fn device() -> Address {
    facts(None, "ON").command.address
}

fn parked() -> Arc<Facts> {
    Arc::new(facts(None, "ON"))
}

fn other() -> Arc<Facts> {
    let mut facts = facts(None, "ON");
    facts.command.address = Address::parse("10.0.0.8").expect("an address");
    Arc::new(facts)
}

fn parking(device_max: usize, total_max: usize) -> Arc<Parking> {
    Arc::new(Parking::new(device_max, total_max, RETURNS_WITHIN, false))
}

#[test]
fn what_expires_in_the_broker_makes_room() {
    let parking = parking(1, 1);
    let facts = parked();
    parking.begin(&facts).expect("room").land(false);
    let expires = facts.command.expires;
    parking.expire(expires);
    assert_eq!(parking.begin(&facts).err(), Some(Full::Total(1)));
    parking.expire(expires + EXPIRY_MARGIN);
    assert!(parking.begin(&facts).is_ok());
}

#[test]
fn a_lot_gates_until_nothing_is_parked_and_nothing_on_its_way() {
    let parking = parking(10, 10);
    let facts = parked();
    let place = parking.begin(&facts).expect("room");
    assert!(parking.gates(&device()));
    assert!(!parking.finish(&device()), "one is on its way");
    parking.asking(&device());
    place.land(false);
    assert!(!parking.finish(&device()), "it landed after the broker was asked");
    parking.asking(&device());
    parking.fetched(&device(), Some(facts.origin.number));
    assert!(parking.finish(&device()));
    assert!(!parking.gates(&device()));
    assert_eq!(parking.total(), 0);
}

#[test]
fn there_is_room_for_so_many_of_a_device_and_so_many_in_all() {
    let parking = parking(2, 3);
    let first = parking.begin(&parked()).expect("room");
    let _second = parking.begin(&parked()).expect("room");
    assert_eq!(parking.begin(&parked()).err(), Some(Full::Device(2)));
    let _third = parking.begin(&other()).expect("room");
    assert_eq!(parking.begin(&other()).err(), Some(Full::Total(3)));
    drop(first);
    assert!(parking.begin(&other()).is_ok(), "what does not land gives its room back");
}

#[tokio::test]
async fn when_there_is_no_room_the_broker_is_asked_what_it_holds_of_an_earlier_bridge() {
    let parking = parking(2, 9);
    let first = parking.begin(&parked()).expect("room");
    parking.counted_at_broker(&device(), 2);
    assert_eq!(parking.begin(&parked()).err(), Some(Full::Device(2)));
    assert_eq!(parking.next_work().await, Work::Count(device()));
    parking.counted_at_broker(&device(), 0);
    assert!(parking.begin(&parked()).is_ok());
    drop(first);
    assert_eq!(parking.total(), 0);
}

#[tokio::test]
async fn a_device_is_asked_about_once_and_only_if_anything_was_ever_parked() {
    let parking = parking(2, 3);
    parking.arrived(&other().command.address);
    assert!(parking.gates(&other().command.address), "nobody has looked");
    assert_eq!(parking.next_work().await, Work::Fetch(other().command.address.clone()));
    parking.set_never_used();
    parking.arrived(&device());
    assert!(!parking.gates(&device()), "nobody parks");
    parking.set_in_use();
    parking.arrived(&device());
    parking.arrived(&device());
    assert!(parking.gates(&device()));
    assert_eq!(parking.next_work().await, Work::Fetch(device()));
    assert!(parking.lock().wanted.is_empty());
    assert!(parking.finish(&device()));
    parking.arrived(&device());
    assert!(!parking.gates(&device()), "it is known to have nothing");
}

#[test]
fn what_was_in_hand_on_a_lost_connection_is_missed_until_it_is_back_or_the_broker_must_know() {
    let parking = parking(2, 3);
    parking.set_in_use();
    parking.arrived(&device());
    let now = Instant::now();
    let misses = |shown, now| parking.misses_some(&device(), shown, now);
    assert!(!misses(Some("b-3"), now));

    parking.lost(&device(), ["b-1".into(), "b-2".into()].into());
    assert_eq!(parking.restart(), [device()]);
    parking.look_again(&device(), false);
    assert!(parking.gates(&device()), "new commands stay behind it");
    assert!(misses(None, now));
    assert!(misses(Some("b-3"), now));
    assert!(!misses(Some("b-3"), now + 2 * RETURNS_WITHIN));
    assert!(!misses(Some("b-1"), now));
    assert!(!misses(Some("b-3"), now), "they come back together");

    parking.look_again(&device(), false);
    assert!(!parking.gates(&device()));
}

#[tokio::test]
async fn on_a_new_connection_those_that_waited_come_before_those_that_had_their_turn() {
    let parking = parking(2, 3);
    parking.set_in_use();
    let second = other().command.address.clone();
    parking.arrived(&device());
    parking.arrived(&second);
    assert_eq!(parking.next_work().await, Work::Fetch(device()));

    let again = parking.restart();
    assert_eq!(again, [second, device()]);
    again.iter().for_each(|address| parking.look_again(address, true));
    for address in again {
        assert_eq!(parking.next_work().await, Work::Fetch(address));
    }
}
