//! What wgpu's error scopes catch.
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use crate::{DeviceError, Error};

/// What a scope caught, if anything, once wgpu knows.
#[cfg(not(target_arch = "wasm32"))]
type Caught = Pin<Box<dyn Future<Output = Option<wgpu::Error>> + Send>>;
#[cfg(target_arch = "wasm32")]
type Caught = Pin<Box<dyn Future<Output = Option<wgpu::Error>>>>;

/// Error scopes that have been left, of which wgpu does not know yet what they caught. Only a browser has them: there a
/// scope is answered by a promise, which is kept when the page's own code pauses. Elsewhere the answer is there at
/// once.
#[derive(Default)]
pub(crate) struct Scopes {
    open: Mutex<Vec<Scope>>,
}

struct Scope {
    caught: Caught,
    what: &'static str,
    bytes: u64,
}

impl Scopes {
    /// Runs `make` and gives back the error that wgpu raises meanwhile, if any. In a browser [`Scopes::first`] does,
    /// later.
    pub fn scoped<T>(
        &self,
        device: &wgpu::Device,
        what: &'static str,
        bytes: u64,
        make: impl FnOnce() -> T,
    ) -> Result<T, Error> {
        let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let made = make();
        let (validation, internal, memory) = (validation.pop(), internal.pop(), memory.pop());
        #[cfg(target_arch = "wasm32")]
        let errors: [Option<wgpu::Error>; 0] = {
            let all: [Caught; 3] = [Box::pin(validation), Box::pin(internal), Box::pin(memory)];
            all.into_iter().for_each(|caught| self.leave(caught, what, bytes));
            []
        };
        #[cfg(not(target_arch = "wasm32"))]
        let errors = [now(validation), now(internal), now(memory)].map(Option::flatten);
        let Some(error) = errors.into_iter().flatten().next() else { return Ok(made) };
        Err(match from_wgpu(error, what, bytes) {
            error @ Error::Device(DeviceError::Wgpu { .. }) => lost(device).unwrap_or(error),
            memory => memory,
        })
    }

    pub fn create_buffer(
        &self,
        device: &wgpu::Device,
        what: &'static str,
        descriptor: &wgpu::BufferDescriptor<'_>,
    ) -> Result<wgpu::Buffer, Error> {
        self.scoped(device, what, descriptor.size, || device.create_buffer(descriptor))
    }

    /// Keeps a scope until its answer is there.
    #[cfg(any(target_arch = "wasm32", test))]
    fn leave(&self, caught: Caught, what: &'static str, bytes: u64) {
        self.open.lock().expect("no panic while held").push(Scope { caught, what, bytes });
    }

    /// The first error among the answers that have come. Each answer counts once.
    pub fn first(&self) -> Option<Error> {
        let mut first = None;
        self.open.lock().expect("no panic while held").retain_mut(|Scope { caught, what, bytes }| {
            let answer = now(caught.as_mut());
            let waits = answer.is_none();
            if let Some(error) = answer.flatten() {
                first.get_or_insert_with(|| from_wgpu(error, what, *bytes));
            }
            waits
        });
        first
    }

    /// Waits for all answers: the first error among them.
    pub async fn settled(&self) -> Option<Error> {
        let open = std::mem::take(&mut *self.open.lock().expect("no panic while held"));
        let mut first = None;
        for Scope { caught, what, bytes } in open {
            if let Some(error) = caught.await {
                first.get_or_insert_with(|| from_wgpu(error, what, bytes));
            }
        }
        first
    }
}

/// The error of a lost device, if this one is. A device that another thread destroys takes its buffers along, and wgpu
/// may find the call wrong for want of one of them before it finds that the device is gone.
pub(crate) fn lost(device: &wgpu::Device) -> Option<Error> {
    let usage = wgpu::BufferUsages::COPY_SRC;
    let descriptor =
        wgpu::BufferDescriptor { label: Some("weightnorm.probe"), size: 4, usage, mapped_at_creation: true };
    let _memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let _internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let _validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let error = device.create_buffer(&descriptor).get_mapped_range(..).err()?;
    Some(Error::Device(DeviceError::Lost { reason: format!("a new buffer could not be mapped: {error}") }))
}

pub(crate) fn from_wgpu(error: wgpu::Error, what: &'static str, bytes: u64) -> Error {
    match error {
        wgpu::Error::OutOfMemory { .. } => Error::Device(DeviceError::OutOfMemory { what, bytes }),
        other => Error::Device(DeviceError::Wgpu { message: other.to_string() }),
    }
}

/// What a future has without waiting.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

#[cfg(test)]
mod tests {
    use futures_channel::oneshot;

    use super::*;

    fn error(text: &str) -> wgpu::Error {
        wgpu::Error::Validation { source: text.into(), description: text.to_owned() }
    }

    /// A scope as a browser has it: the answer comes when the sender sends.
    fn later(scopes: &Scopes, bytes: u64) -> oneshot::Sender<Option<wgpu::Error>> {
        let (sender, receiver) = oneshot::channel();
        scopes.leave(Box::pin(async { receiver.await.expect("sent") }), "a tensor", bytes);
        sender
    }

    #[test]
    fn an_error_that_comes_later_is_told_at_the_next_look_and_once() {
        let scopes = Scopes::default();
        let [fine, wrong, slow] = [1, 2, 3].map(|bytes| later(&scopes, bytes));
        assert_eq!(scopes.first(), None);
        fine.send(None).unwrap();
        assert_eq!(scopes.first(), None);
        wrong.send(Some(error("a wrong bind group"))).unwrap();
        assert_eq!(scopes.first(), Some(Error::Device(DeviceError::Wgpu { message: "a wrong bind group".into() })));
        assert_eq!(scopes.first(), None);
        slow.send(Some(wgpu::Error::OutOfMemory { source: "full".into() })).unwrap();
        assert_eq!(scopes.first(), Some(Error::Device(DeviceError::OutOfMemory { what: "a tensor", bytes: 3 })));
        assert!(scopes.open.lock().unwrap().is_empty());
    }

    #[test]
    fn who_waits_hears_the_first_error() {
        let scopes = Scopes::default();
        assert_eq!(pollster::block_on(scopes.settled()), None);
        let senders = [1, 2, 3].map(|bytes| later(&scopes, bytes));
        let answers = [None, Some(error("the first")), Some(error("the second"))];
        let sending = std::thread::spawn(|| senders.into_iter().zip(answers).for_each(|(s, a)| s.send(a).unwrap()));
        assert_eq!(
            pollster::block_on(scopes.settled()),
            Some(Error::Device(DeviceError::Wgpu { message: "the first".into() }))
        );
        sending.join().unwrap();
        assert_eq!(scopes.first(), None);
    }
}
