//! What the broker says of what it was asked to do: whether somebody has a message, what is bound and unbound.

use tokio::time::Instant;

use super::super::super::BrokerError;
use super::super::super::stream::Said;
use super::{Asked, BINDING_IS_LATE, Sent, Table};

impl Table<'_> {
    /// Takes up what the broker says.
    pub(in super::super) fn said(&mut self, said: Said) -> Result<(), BrokerError> {
        match said {
            Said::Bound => match self.asked_for.pop_front() {
                Some(Asked::Bind(address, since)) => {
                    self.bound(address.clone())?;
                    if since.elapsed() < BINDING_IS_LATE { Ok(()) } else { self.check(&address) }
                }
                Some(Asked::Unbind(address)) => {
                    self.unbindings -= 1;
                    if let Some(unbinding) = self.unbinding.get_mut(&address) {
                        unbinding.is_answered(Instant::now());
                    }
                    Ok(())
                }
                Some(Asked::Cut) => {
                    // The gate may have been shut meanwhile.
                    self.cut = self.cutting.min(self.cut + 1);
                    Ok(())
                }
                None => Ok(()),
            },
            Said::Taken(number) => {
                match self.sent.remove(&number) {
                    Some(Sent::Command(order, _)) => {
                        self.refused.is_over();
                        self.passed_on(order);
                    }
                    // Who has it answers.
                    Some(Sent::Claim(_)) => self.claimed -= 1,
                    Some(Sent::Asked(bridge)) => self.cluster.is_there(&bridge),
                    // It may have said so before this was parked.
                    Some(Sent::Parked(address)) => {
                        if !self.is_here(&address) {
                            self.devices().parking.left_to_others(&address);
                        }
                    }
                    // Who has it says that it is later; else its bridge has just ended, too.
                    Some(Sent::Overdue(overdue)) => self.cluster.hold_on(overdue),
                    Some(Sent::Said) | None => {}
                }
                Ok(())
            }
            Said::Returned(number) => match self.sent.remove(&number) {
                Some(Sent::Command(order, to)) => self.came_back(order, to),
                Some(Sent::Claim(address)) => {
                    self.claimed -= 1;
                    self.nobody_has(address)
                }
                Some(Sent::Overdue(overdue)) => {
                    self.stayed_away(overdue);
                    Ok(())
                }
                Some(Sent::Asked(bridge)) => {
                    self.cluster.is_missing(&bridge);
                    Ok(())
                }
                Some(Sent::Parked(_) | Sent::Said) | None => Ok(()),
            },
            Said::Refused(number) => self.refused(number),
        }
    }
}
