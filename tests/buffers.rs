//! Registered buffers: nothing is copied, nothing is disturbed while it is in use, and all memory comes back.

#![allow(clippy::unwrap_used)] // in a test a failure is a panic

mod common;

use std::thread;

use common::job::Job;
use common::{Process, until, windlass};
use rustix::process::Signal;
use windlass::types::{Aggregate, Consistency, OptimizerSpec, Wire};
use windlass::{Buffer, Client, Error, KeyRange, SortedKeys, Table, TableSpec};

/// Elements of the tables: 16 MiB.
const N: u64 = 4 << 20;

fn sum(name: &str, elements: u64, consistency: Consistency) -> TableSpec {
    let spec = TableSpec::dense(name, &[elements]).optimizer(OptimizerSpec::sum());
    spec.aggregate(Aggregate::Sum).consistency(consistency)
}

fn range(start: u64, end: u64) -> KeyRange {
    KeyRange::new(start, end).unwrap()
}

fn is_misuse<T>(result: windlass::Result<T>) -> bool {
    matches!(result, Err(Error::Misuse { .. }))
}

/// What the servers have copied so far.
fn copied_by_servers(client: &Client) -> u64 {
    client.server_stats().unwrap().iter().flat_map(|s| &s.threads).map(|t| t.bytes_copied).sum()
}

/// Calls until what the client holds registered is `bytes`; each call makes progress.
fn until_registered(client: &Client, table: &Table, bytes: u64) {
    until(common::PATIENCE, "the memory of a dropped buffer", || {
        table.pull_range(range(0, 1), &mut [0.0]).unwrap();
        client.stats().registered_bytes == bytes
    });
}

#[test]
fn registered_buffers_are_never_copied_and_slices_once_each_way() {
    let job = Job::start(2, 2, 1);
    let client = job.client(0);
    for (name, consistency) in [("bsp", Consistency::Bsp), ("asp", Consistency::Asp)] {
        let table = client.table(&sum(name, N, consistency)).unwrap();
        let (copied, by_servers) = (client.stats().bytes_copied, copied_by_servers(&client));
        let mut buffer = client.buffer(N as usize + 10).unwrap();
        for (i, value) in buffer.as_mut_slice().unwrap().iter_mut().enumerate() {
            *value = (i % 1000) as f32;
        }
        let all = range(0, N);
        let mut push = table.push_range_buffer(all, &buffer, 10).unwrap();
        client.clock().unwrap();
        push.wait().unwrap();
        let mut pulled = client.buffer(N as usize).unwrap();
        assert_eq!(table.pull_range_buffer(all, &mut pulled, 0).unwrap(), 1);
        assert!(
            pulled.as_slice().unwrap() == &buffer.as_slice().unwrap()[10..],
            "{name}: pulled something else"
        );
        let both = table.push_pull_range_buffer(all, &mut pulled, 0).unwrap();
        client.clock().unwrap();
        assert_eq!(both.wait_version().unwrap(), 2);
        let doubled = |(a, b): (&f32, &f32)| *a == 2.0 * b;
        assert!(pulled.as_slice().unwrap().iter().zip(&buffer.as_slice().unwrap()[10..]).all(doubled));
        let both = table.push_pull_range_buffers(all, (&buffer, 10), (&mut pulled, 0)).unwrap();
        client.clock().unwrap();
        assert_eq!(both.wait_version().unwrap(), 3);
        assert_eq!(pulled.as_slice().unwrap()[7], 51.0);
        assert_eq!(client.stats().bytes_copied, copied, "{name}: something was copied");
        assert_eq!(copied_by_servers(&client), by_servers, "{name}: a server copied something");

        let mut values = vec![1.0f32; 100_000];
        let some = range(5, 100_005);
        drop(table.push_range(some, &values).unwrap());
        client.clock().unwrap();
        assert_eq!(client.stats().bytes_copied, copied + 400_000);
        table.pull_range(some, &mut values).unwrap();
        assert_eq!(client.stats().bytes_copied, copied + 800_000);
        assert_eq!(values[0], 46.0);
        // A short answer is copied; so are those that filters change.
        let by_servers = copied_by_servers(&client);
        table.pull_range(range(0, 100), &mut values[..100]).unwrap();
        assert_eq!(copied_by_servers(&client), by_servers + 400);
        let narrow = client.table(&sum(&format!("{name} fp16"), N, consistency).wire(Wire::Fp16)).unwrap();
        drop(narrow.push_range(some, &values).unwrap());
        client.clock().unwrap();
        narrow.pull_range(some, &mut values).unwrap();
        assert_eq!(copied_by_servers(&client), by_servers + 400 + 200_000);
    }
    let table = client.table(&TableSpec::sparse("rows", 4)).unwrap();
    let (copied, by_servers) = (client.stats().bytes_copied, copied_by_servers(&client));
    let key = SortedKeys::new(&[5]).unwrap();
    drop(table.push(key, &[1.0; 4]).unwrap());
    // One line of the directory, the key, the row.
    assert_eq!(client.stats().bytes_copied, copied + 8 + 8 + 16);
    client.clock().unwrap();
    table.pull(key, &mut [0.0; 4]).unwrap();
    // Twice the directory and the key, and the row gathered and put into a reply buffer.
    assert_eq!(copied_by_servers(&client), by_servers + 2 * (8 + 8) + 2 * 16);
    client.finalize().unwrap();
    job.end();
}

#[test]
fn values_that_filters_change_are_copied_through_them_and_counted() {
    let job = Job::start(2, 2, 1);
    let client = job.client(0);
    // Twice as many answers as receive memory holds.
    let all = range(0, 2 * N);
    let mut buffer = client.buffer(2 * N as usize).unwrap();
    for (name, consistency) in [("bsp", Consistency::Bsp), ("asp", Consistency::Asp)] {
        let table = client.table(&sum(name, 2 * N, consistency).wire(Wire::Fp16)).unwrap();
        for (i, value) in buffer.as_mut_slice().unwrap().iter_mut().enumerate() {
            *value = (i % 1000) as f32;
        }
        let copied = client.stats().bytes_copied;
        let mut push = table.push_range_buffer(all, &buffer, 0).unwrap();
        client.clock().unwrap();
        push.wait().unwrap();
        assert_eq!(client.stats().bytes_copied, copied + 4 * N, "{name}: two bytes for each value");
        buffer.as_mut_slice().unwrap().fill(-1.0);
        assert_eq!(table.pull_range_buffer(all, &mut buffer, 0).unwrap(), 1);
        assert_eq!(client.stats().bytes_copied, copied + 8 * N, "{name}");
        assert!(
            buffer.as_slice().unwrap().iter().enumerate().all(|(i, v)| *v == (i % 1000) as f32),
            "{name}"
        );
        let both = table.push_pull_range_buffer(range(0, N / 2), &mut buffer, 7).unwrap();
        client.clock().unwrap();
        assert_eq!(both.wait_version().unwrap(), 2);
        let expected = |i: usize| (i % 1000 + (i + 7) % 1000) as f32;
        let found = buffer.as_slice().unwrap()[7..].iter().take(N as usize / 2).enumerate();
        assert!(found.into_iter().all(|(i, v)| *v == expected(i)), "{name}: in place");
    }
    // Answers that only the end of the clock brings do not fit: nothing is pushed.
    let table = client.table(&sum("bsp", 2 * N, Consistency::Bsp).wire(Wire::Fp16)).unwrap();
    let refused = table.push_pull_range_buffer(all, &mut buffer, 0);
    assert!(matches!(refused, Err(Error::Limit { .. })), "{refused:?}");
    client.clock().unwrap();
    let mut first = [0.0];
    assert_eq!(table.pull_range(range(1, 2), &mut first).unwrap(), 2);
    client.finalize().unwrap();
    job.end();
}

#[test]
fn elements_in_use_are_not_touched_and_others_are_free() {
    let job = Job::start(1, 2, 1);
    let client = job.client(0);
    let table = client.table(&sum("w", 1000, Consistency::Bsp)).unwrap();
    let mut buffer = client.buffer(300).unwrap();
    buffer.as_mut_slice().unwrap().fill(3.0);
    let mut values = [0.0; 100];

    // A push: it is committed when its clock ends, not before.
    let mut push = table.push_range_buffer(range(0, 100), &buffer, 100).unwrap();
    assert!(is_misuse(buffer.as_mut_slice()) && is_misuse(buffer.write(199, &[1.0])));
    assert!(is_misuse(table.pull_range_buffer(range(0, 100), &mut buffer, 150)));
    assert!(is_misuse(table.push_pull_range_buffer(range(0, 100), &mut buffer, 150)));
    buffer.read(100, &mut values).unwrap();
    assert_eq!(buffer.as_slice().unwrap()[150], 3.0);
    buffer.write(0, &[5.0; 100]).unwrap();
    buffer.write(200, &[7.0; 100]).unwrap();
    // What one push reads another may read.
    drop(table.push_range_buffer(range(100, 400), &buffer, 0).unwrap());
    assert!(is_misuse(buffer.write(0, &[1.0])), "the ticket is gone, the push is not");
    client.clock().unwrap();
    push.wait().unwrap();
    until(common::PATIENCE, "the commit of the second push", || buffer.as_mut_slice().is_ok());
    buffer.write(100, &[4.0; 100]).unwrap();
    table.pull_range(range(0, 100), &mut values).unwrap();
    assert_eq!(values, [3.0; 100]);

    // A pull that waits for the end of the clock.
    let pull = table.push_pull_range_buffer(range(0, 100), &mut buffer, 100).unwrap();
    assert!(is_misuse(buffer.as_slice()) && is_misuse(buffer.as_mut_slice()));
    assert!(is_misuse(buffer.read(199, &mut values[..1])) && is_misuse(buffer.write(100, &[0.0])));
    assert!(is_misuse(table.push_range_buffer(range(0, 100), &buffer, 50)));
    buffer.read(200, &mut values).unwrap();
    assert_eq!(values, [7.0; 100]);
    drop(pull);
    assert!(is_misuse(buffer.as_slice()), "the ticket is gone, the pull is not");
    client.clock().unwrap();
    until(common::PATIENCE, "the answer", || buffer.as_slice().is_ok());
    assert_eq!(buffer.as_slice().unwrap()[100..200], [7.0; 100]);

    // Wrong places, and a slice for what came without one.
    let outside = table.pull_range_buffer(range(0, 100), &mut buffer, 201).unwrap_err();
    assert!(matches!(outside, Error::Config { .. }), "{outside}");
    assert!(buffer.write(usize::MAX, &[1.0]).is_err() && buffer.read(300, &mut [0.0]).is_err());
    let ticket = table.pull_range_buffer_async(range(0, 10), &mut buffer, 0).unwrap();
    assert!(ticket.wait_into(&mut values[..10]).is_err());
    client.finalize().unwrap();
    job.end();
}

#[test]
fn there_are_63_at_a_time_and_each_belongs_to_its_client() {
    let job = Job::start(1, 1, 2);
    let (client, other) = thread::scope(|scope| {
        let first = scope.spawn(|| job.client(0));
        let second = job.client(1);
        (first.join().unwrap(), second)
    });
    let table = client.table(&sum("w", 100, Consistency::Asp)).unwrap();
    let mut buffers: Vec<Buffer> = (0..63).map(|_| client.buffer(100).unwrap()).collect();
    for (number, buffer) in (1u8..).zip(&mut buffers) {
        buffer.as_mut_slice().unwrap().fill(f32::from(number));
        drop(table.push_range_buffer(range(0, 100), buffer, 0).unwrap());
    }
    let error = client.buffer(1).unwrap_err();
    assert!(matches!(error, Error::Limit { limit: 63, .. }), "{error}");
    for buffer in &mut buffers {
        until(common::PATIENCE, "a push", || buffer.as_mut_slice().is_ok());
        table.pull_range_buffer(range(0, 100), buffer, 0).unwrap();
    }
    assert_eq!(buffers[62].as_slice().unwrap()[99], (1..=63).sum::<u16>() as f32);
    let theirs = table.pull_range_buffer(range(0, 1), &mut other.buffer(1).unwrap(), 0).unwrap_err();
    assert!(theirs.to_string().contains("another client"), "{theirs}");
    // A number is another buffer's as soon as its owner's memory is let go.
    buffers.remove(7).release().unwrap();
    buffers.push(client.buffer(50).unwrap());
    table.pull_range_buffer(range(50, 100), &mut buffers[62], 0).unwrap();
    assert_eq!(buffers[62].as_slice().unwrap(), buffers[61].as_slice().unwrap().split_at(50).1);
    drop(buffers);
    until_registered(&client, &table, 0);
    other.finish().unwrap();
    client.finalize().unwrap();
    other.finalize().unwrap();
    job.end();
}

#[test]
fn own_memory_is_used_where_it_lies_and_given_back() {
    let job = Job::start(1, 2, 1);
    let client = job.client(0);
    let table = client.table(&sum("w", 200_000, Consistency::Asp)).unwrap();
    let mut mine: Vec<f32> = (0..100_001).map(|i| i as f32).collect();
    let start = mine.as_mut_ptr();
    // SAFETY: the vector lies still and is not touched until `release` has returned. One past an element is no less aligned.
    let mut buffer = unsafe { client.register_memory(start.wrapping_add(1), 100_000) }.unwrap();
    assert_eq!((buffer.len(), buffer.as_ptr()), (100_000, start.wrapping_add(1)));
    table.push_range_buffer(range(50_000, 150_000), &buffer, 0).unwrap().wait().unwrap();
    let ticket = table.push_pull_range_buffer(range(50_000, 150_000), &mut buffer, 0).unwrap();
    assert_eq!(client.stats().registered_bytes, 400_000);
    drop(ticket);
    buffer.release().unwrap();
    assert_eq!(client.stats(), windlass::ClientStats::default());
    assert!(mine.iter().enumerate().skip(1).all(|(i, &v)| v == 2.0 * i as f32), "{:?}", &mine[..3]);
    // SAFETY: they are refused.
    unsafe {
        assert!(client.register_memory(std::ptr::null_mut(), 1).is_err());
        assert!(client.register_memory(start.wrapping_byte_add(2), 1).is_err());
        assert!(client.register_memory(start, 0).is_err());
    }
    client.finalize().unwrap();
    job.end();
}

#[test]
fn what_is_dropped_while_a_server_stands_still_is_kept_until_it_is_done() {
    let job = Job::with(0, 1, 1, |server| server);
    let secret = common::scratch();
    let path = secret.path().join("secret");
    common::secret_file(&path, &job.secret);
    let arguments = ["server", "--coordinator", &job.address, "--secret-file", common::text(&path)];
    let server = Process::start(windlass(arguments));
    let client = job.client(0);
    let table = client.table(&sum("w", N, Consistency::Asp)).unwrap();
    let mut pulled = client.buffer(1000).unwrap();
    table.pull_range_buffer(range(0, 1000), &mut pulled, 0).unwrap();

    server.signal(Signal::STOP);
    let stat = format!("/proc/{}/stat", server.pid());
    until(common::PATIENCE, "the server to stand still", || {
        std::fs::read_to_string(&stat).unwrap().contains(") T ")
    });
    let mut pushed = client.buffer(N as usize).unwrap();
    pushed.as_mut_slice().unwrap().fill(2.5);
    let mut ticket = table.push_range_buffer(range(0, N), &pushed, 0).unwrap();
    let short = std::time::Duration::from_millis(50);
    assert!(matches!(ticket.wait_timeout(short), Err(Error::Timeout { .. })));
    assert!(is_misuse(pushed.write(0, &[0.0])), "a timeout gives nothing back");
    drop(ticket);
    drop(pushed);
    drop(table.pull_range_buffer_async(range(0, 1000), &mut pulled, 0).unwrap());
    drop(pulled);
    assert_eq!(client.stats().registered_bytes, N * 4 + 4000);
    // Memory that is asked for meanwhile is other memory.
    let mut another = client.buffer(N as usize).unwrap();
    another.as_mut_slice().unwrap().fill(9.0);

    server.signal(Signal::CONT);
    table.pull_range_buffer(range(0, N), &mut another, 0).unwrap();
    assert!(
        another.as_slice().unwrap().iter().all(|&v| v == 2.5),
        "the push left from memory that was used again"
    );
    until_registered(&client, &table, N * 4);
    another.release().unwrap();
    assert_eq!(client.stats().registered_bytes, 0);
    client.finalize().unwrap();
    server.end(common::PATIENCE).expect(0);
    job.end();
}

#[test]
fn all_of_it_over_tcp_too() {
    common::over_tcp();
}
