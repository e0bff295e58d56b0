use super::*;

const FAST: Duration = Duration::from_millis(10);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn part() -> Bytes {
    Bytes::from_static(b"part")
}

/// Plays a transfer where each source takes so long for a part; gives how many each gave, and how long it took.
fn play(board: &mut Board, paces: &[Duration]) -> (Vec<usize>, Duration) {
    let (mut now, mut gave, mut under_way, mut order) = (Duration::ZERO, vec![0; paces.len()], Vec::new(), 0);
    while !board.is_complete() {
        while let Some(ticket) = board.next_question(now) {
            under_way.push((now + paces[ticket.source], ticket));
        }
        board.silent(now);
        let mut left = Vec::new();
        for (due, ticket) in under_way {
            match due <= now {
                true => {
                    gave[ticket.source] += 1;
                    board.arrived(ticket, part(), now);
                }
                false => left.push((due, ticket)),
            }
        }
        under_way = left;
        while let Some((part, _)) = board.take() {
            assert_eq!(part, order);
            order += 1;
        }
        assert!(!board.is_hopeless(now));
        now += ms(5);
    }
    (gave, now)
}

#[test]
fn parts_cover_a_blob_without_gaps() {
    for size_bytes in [1, FIRST_PART_BYTES, FIRST_PART_BYTES + 1, FIRST_PART_BYTES + 3 * PART_BYTES + 7] {
        let layout = Layout { size_bytes };
        let parts = layout.parts_of(&(0..size_bytes));
        let mut at = 0;
        for part in parts {
            let bytes = layout.bytes_of(part);
            assert!(bytes.start == at && bytes.end > at && layout.part_at(at) == part);
            assert_eq!(layout.part_at(bytes.end - 1), part);
            at = bytes.end;
        }
        assert_eq!(at, size_bytes);
    }
}

#[test]
fn the_fastest_source_gives_most() {
    let mut board = Board::new(0..400, 64);
    board.add(false, true, ms(50), ms(0));
    board.add(false, false, ms(50), ms(0));
    let (gave, _) = play(&mut board, &[ms(400), ms(50)]);
    assert!(gave[1] > 2 * gave[0], "{gave:?}");
    assert!(gave[0] + gave[1] <= 400 + 8, "hardly a part is asked for twice: {gave:?}");
}

#[test]
fn a_source_near_by_is_used_alone_while_it_works() {
    let mut board = Board::new(0..100, 32);
    board.add(false, true, FAST, ms(0));
    board.add(true, false, ms(200), ms(0));
    let (gave, _) = play(&mut board, &[FAST, ms(200)]);
    assert_eq!(gave, [0, 100]);
}

#[test]
fn a_source_near_by_that_has_nothing_yet_is_waited_for_but_not_for_ever() {
    let mut board = Board::new(0..4, 8);
    let near = board.add(true, false, FAST, ms(0));
    let far = board.add(false, true, FAST, ms(0));
    for now in (0..14_000).step_by(200) {
        let ticket = board.next_question(ms(now)).unwrap();
        assert_eq!(ticket.source, near);
        board.failed(ticket, Failure::NotYet, ms(now));
        assert_eq!(board.next_question(ms(now + 50)), None, "the other one is left alone");
        assert!(board.silent(ms(now + 50)).is_empty());
    }
    assert_eq!(board.silent(ms(16_000)), [near]);
    assert_eq!(board.next_question(ms(16_000)).map(|ticket| ticket.source), Some(far));
}

#[test]
fn a_silent_source_loses_its_parts_and_the_transfer_goes_on() {
    let mut board = Board::new(0..100, 32);
    board.add(true, false, FAST, ms(0));
    board.add(false, true, ms(100), ms(0));
    let (gave, took) = play(&mut board, &[Duration::MAX / 2, ms(100)]);
    assert_eq!(gave, [0, 100]);
    assert!(took < ms(10_000), "{took:?}");
}

#[test]
fn a_part_that_everybody_waits_for_is_asked_for_elsewhere() {
    let mut board = Board::new(0..64, 16);
    board.add(false, true, FAST, ms(0));
    board.add(false, false, FAST, ms(0));
    let slow = ms(3_900);
    let (gave, took) = play(&mut board, &[slow, FAST]);
    assert!(gave[1] >= 56 && took < slow, "{gave:?} in {took:?}");
}

#[test]
fn whoever_was_asked_first_and_gave_nothing_is_overtaken() {
    let mut board = Board::new(0..1, 16);
    let (late, quick) = (board.add(false, true, FAST, ms(0)), board.add(false, false, FAST * 2, ms(0)));
    let first = board.next_question(ms(0)).unwrap();
    let second = board.next_question(ms(1_000)).unwrap();
    assert_eq!([(first.source, first.part), (second.source, second.part)], [(late, 0), (quick, 0)]);
    board.arrived(second, part(), ms(1_010));
    assert_eq!(board.overtaken(second).collect::<Vec<_>>(), [late]);
    board.arrived(first, part(), ms(2_000));
    assert_eq!(board.overtaken(first).count() + board.overtaken(second).count(), 0);
}

#[test]
fn a_source_that_lies_or_has_nothing_is_dropped_at_once_the_primary_only_after_a_while() {
    let mut board = Board::new(0..10, 10);
    let primary = board.add(false, true, FAST, ms(0));
    let other = board.add(false, false, FAST / 2, ms(0));
    let ticket = board.next_question(ms(0)).unwrap();
    assert_eq!((ticket.source, ticket.part), (other, 0));
    assert!(board.failed(ticket, Failure::Wrong, ms(1)));
    for wrong in 1..=3 {
        let now = ms(10_000 * wrong);
        let ticket = board.next_question(now).unwrap();
        assert_eq!((ticket.source, ticket.part), (primary, 0));
        assert_eq!(board.failed(ticket, Failure::Wrong, now), wrong == 3);
        assert_eq!(board.next_question(now), None, "it rests");
        assert_eq!(board.is_hopeless(now), wrong == 3);
    }
}

#[test]
fn a_source_that_cannot_be_reached_is_asked_again_for_a_while() {
    let mut board = Board::new(0..1, 10);
    board.add(false, true, FAST, ms(0));
    let (mut now, mut asked) = (ms(0), 0);
    while !board.is_hopeless(now) {
        if let Some(ticket) = board.next_question(now) {
            assert!(!board.failed(ticket, Failure::Unreachable, now));
            asked += 1;
        }
        now += ms(50);
    }
    assert!((20..60).contains(&asked), "{asked}");
    assert!(now > PATIENCE);
}

#[test]
fn what_a_source_gives_after_it_was_given_up_counts_all_the_same() {
    let mut board = Board::new(0..2, 10);
    board.add(false, true, FAST, ms(0));
    board.add(false, false, FAST, ms(0));
    let first = board.next_question(ms(0)).unwrap();
    let second = board.next_question(ms(0)).unwrap();
    assert_eq!(board.silent(ms(60_000)).len(), 1);
    board.arrived(first, part(), ms(60_001));
    board.arrived(second, part(), ms(60_001));
    assert_eq!(board.take().map(|(part, _)| part), Some(0));
    assert_eq!(board.take().map(|(part, _)| part), Some(1));
    assert!(board.is_complete() && board.next_question(ms(60_002)).is_none());
}
