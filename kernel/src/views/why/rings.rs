//! Lists of waiters, with distrust: in a ring, every step must lead back.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use super::look::Look;
use crate::addr::KernelAddr;
use crate::memory::Memory;
use crate::reader::Object;

/// More waiters for one lock than a view is worth.
const MAX_RING: usize = 1 << 14;

/// Steps along all rings of one view. Each ring is walked once.
const MAX_STEPS: usize = 1 << 21;

/// A ring of `struct list_head`s.
pub(super) struct Ring {
    pub(super) nodes: Vec<KernelAddr>,
    /// The one node that is no waiter, by what kind of waiter the others would be.
    head: RefCell<HashMap<String, Option<KernelAddr>>>,
}

/// The rings that were walked.
#[derive(Default)]
pub(super) struct Rings {
    /// By node.
    known: RefCell<HashMap<KernelAddr, Rc<Ring>>>,
    steps: Cell<usize>,
}

impl Rings {
    /// Has all rings walked again when they are asked for: a task has run.
    pub(super) fn forget(&self) {
        self.known.borrow_mut().clear();
    }
}

impl<M: Memory> Look<'_, '_, M> {
    /// The `next` of a node that is linked as it should be.
    fn step(&self, node: KernelAddr) -> Option<KernelAddr> {
        let steps = &self.rings.steps;
        steps.set(steps.get() + 1);
        if steps.get() > MAX_STEPS {
            self.reader
                .warn("there are too many waiters: what some wait for is not told");
            return None;
        }
        let (next, prev) = self.list_head?;
        let after = self.word(node + next)?;
        let leads_back = !after.is_null() && after.get().is_multiple_of(8);
        (leads_back && self.word(after + prev)? == node).then_some(after)
    }

    /// Whether a node is in a list, and not alone.
    pub(super) fn is_linked(&self, node: KernelAddr) -> bool {
        self.step(node).is_some_and(|after| after != node)
    }

    /// The ring that a node is in. `None` when that is none, or too large.
    pub(super) fn ring(&self, node: KernelAddr) -> Option<Rc<Ring>> {
        if let Some(ring) = self.rings.known.borrow().get(&node) {
            return Some(Rc::clone(ring));
        }
        let mut nodes = vec![node];
        let mut at = node;
        loop {
            // A ring in which every step leads back cannot come to its middle again.
            at = self.step(at)?;
            if at == node {
                break;
            }
            if nodes.len() == MAX_RING {
                return None;
            }
            nodes.push(at);
        }
        let ring = Rc::new(Ring {
            nodes,
            head: RefCell::default(),
        });
        let mut known = self.rings.known.borrow_mut();
        known.extend(ring.nodes.iter().map(|&node| (node, Rc::clone(&ring))));
        Some(ring)
    }

    /// The one node of a ring that is no waiter. `None` when there is none, or more than one.
    pub(super) fn head(
        &self,
        node: KernelAddr,
        kind: &str,
        is_waiter: impl Fn(KernelAddr) -> bool,
    ) -> Option<KernelAddr> {
        let ring = self.ring(node)?;
        if let Some(head) = ring.head.borrow().get(kind) {
            return *head;
        }
        let mut heads = ring.nodes.iter().filter(|&&node| !is_waiter(node));
        let first = heads.next().copied();
        let head = first.filter(|_| heads.next().is_none());
        ring.head.borrow_mut().insert(kind.to_owned(), head);
        head
    }

    /// The head of the list that a waiter's member `link` is in: the one node that is no waiter of
    /// this type on the stack of a task.
    pub(super) fn head_of(
        &self,
        waiter: &Object<'_, M>,
        owner: &str,
        link: &str,
        task: &str,
    ) -> Option<KernelAddr> {
        let layout = self.layout()?;
        let link = layout.member(owner, link).ok()?.offset;
        let task = layout.member(owner, task).ok()?.offset;
        self.head(waiter.addr() + link, owner, |node| {
            let task = self.word(node - link + task);
            let task = task.and_then(|task| self.task(task));
            task.is_some_and(|task| self.reader.kernel().stack_of(task).contains(&node.get()))
        })
    }
}
