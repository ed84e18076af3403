//! What waits, for several at the same time.

use std::panic::resume_unwind;
use std::thread;

/// Does all of it at once, so that a slow one keeps no other waiting; the results are in the order of
/// the items. The first one needs no thread.
pub(crate) fn at_once<I: Send, T: Send>(
    items: impl IntoIterator<Item = I>,
    work: impl Fn(I) -> T + Sync,
) -> Vec<T> {
    let (mut items, work) = (items.into_iter(), &work);
    thread::scope(|scope| {
        let first = items.next();
        let threads: Vec<_> = items.map(|item| scope.spawn(move || work(item))).collect();
        let here = first.map(work);
        let joined = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        here.into_iter().chain(joined).collect()
    })
}
