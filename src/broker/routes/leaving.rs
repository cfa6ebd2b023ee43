//! `Leaving`: a bridge that ends hands on what came for its devices, or leaves it to the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio_util::sync::CancellationToken;

use super::super::connection::Link;
use super::super::topology::Gate;
use super::super::{BrokerError, topology};
use super::Routes;
use super::table::Table;

/// When a bridge is to leave the others.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leaving {
    /// No device is connected any more: what comes for one is handed on.
    pub(crate) begin: CancellationToken,
    /// So many of the shards are to be cut off: their devices are about to be let go, and the others hold them.
    pub(crate) shards: Arc<AtomicU32>,
    /// What is in the inbox by now stays there: whoever finds that this bridge is gone takes it from there. What is in
    /// hand is handed on still.
    pub(crate) hurry: CancellationToken,
}

impl Leaving {
    /// Brings a bridge closer to its end, if it is to leave. `enough` says that the inbox need not be read any more.
    pub(super) async fn look(
        &self,
        routes: &Routes,
        link: &Link,
        gate: &Gate,
        table: &mut Table<'_>,
        enough: &CancellationToken,
    ) -> Result<(), BrokerError> {
        table.cut_off(self.shards.load(Ordering::Relaxed))?;
        if !self.begin.is_cancelled() || enough.is_cancelled() {
            return Ok(());
        }
        let hurries = self.hurry.is_cancelled();
        if table.has_many() || (hurries && table.is_open()) {
            gate.shut(link).await?;
            table.shut();
        }
        if hurries {
            enough.cancel();
        } else if table.is_done() {
            let (settings, bridge) = (&routes.intake.settings, &routes.cluster.bridge);
            let depth = topology::inbox_depth(link, settings, bridge).await?;
            if depth.is_none_or(|depth| depth == 0) {
                enough.cancel();
            }
        }
        Ok(())
    }
}
