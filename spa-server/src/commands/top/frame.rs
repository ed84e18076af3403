//! One frame of `spa-server top`, drawn from what is known. Pure: it draws into a buffer.

use super::state::{MOST_LISTED, Row, State};
use crate::commands::daemon::{count, guarding, micros_in_words, seconds};
use crate::control::Status;
use crate::plain::plain;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Sparkline, Table, Wrap};

/// As small as it can be read.
const SMALLEST: (u16, u16) = (40, 12);
const KEYS: &str = "q quit   up/down PgUp/PgDn scroll   p pause";

/// Draws what there is to show. How many grants have room is for the state to know.
pub(super) fn draw(frame: &mut Frame<'_>, state: &mut State) {
    let area = frame.area();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        let (width, height) = SMALLEST;
        frame.render_widget(
            Paragraph::new(format!("{width} columns and {height} lines are needed"))
                .wrap(Wrap { trim: true }),
            area,
        );
        return;
    }
    let Some(status) = state.status.clone() else {
        let nothing = state.fault.as_deref().unwrap_or("the daemon is asked");
        let again = if state.fault.is_some() { "\n\nIt is asked again every second." } else { "" };
        let text = Paragraph::new(format!("{nothing}{again}")).wrap(Wrap { trim: true });
        let [all, foot] =
            area.layout(&Layout::vertical([Constraint::Min(1), Constraint::Length(1)]));
        frame.render_widget(text.block(Block::bordered().title(" spa-server top ")), all);
        frame.render_widget(foot_line(state), foot);
        return;
    };
    let is_short = how_it_is(state, &status).0.chars().count() <= usize::from(area.width);
    let head = if is_short { 4 } else { 6 };
    let middle = (area.height / 3).clamp(4, 16);
    let [head, rates, grants, foot] = area.layout(&Layout::vertical([
        Constraint::Length(head),
        Constraint::Length(middle),
        Constraint::Min(4),
        Constraint::Length(1),
    ]));
    draw_head(frame, head, state, &status);
    let [reasons, plot] =
        rates.layout(&Layout::horizontal([Constraint::Percentage(45), Constraint::Fill(1)]));
    draw_reasons(frame, reasons, state);
    draw_noise(frame, plot, state);
    draw_grants(frame, grants, state, &status);
    frame.render_widget(foot_line(state), foot);
}

/// Whether all is well, or what is not.
fn how_it_is(state: &State, status: &Status) -> (String, Style) {
    if let Some(fault) = &state.fault {
        return (format!("{fault}; asked again every second"), alarm());
    }
    let bad = status.interfaces.iter().find(|one| one.state != "running");
    let capture =
        bad.map_or_else(|| "running".to_owned(), |one| format!("{}: {}", one.name, one.state));
    let is_well = status.gate == "installed" && status.replay_store == "writable" && bad.is_none();
    let text = format!(
        "gate {} ({}); capture {capture}; store {}",
        status.gate,
        guarding(status),
        status.replay_store
    );
    (plain(&text), if is_well { Style::new() } else { alarm() })
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, state: &State, status: &Status) {
    let title = format!(
        "spa-server {}, pid {}, up {}",
        plain(&status.version),
        status.pid,
        seconds(status.uptime)
    );
    let (text, style) = how_it_is(state, status);
    let second = Line::from(text).style(style);
    let rates = &state.rates;
    let third = Line::from(vec![
        Span::from("knocks/s ").dim(),
        Span::from(format!("{} accepted", rate(rates.accepted))),
        Span::from(format!(", {} opened", rate(rates.opened))),
        Span::from(format!(", {} closed early", rate(rates.closed))),
        Span::from(format!(", {} failed", rate(rates.failed))),
        Span::from(format!(", {} lost", rate(rates.lost))),
    ]);
    let fourth = match &status.latency {
        Some(latency) => {
            let at = micros_in_words;
            Line::from(vec![
                Span::from("latency ").dim(),
                Span::from(format!(
                    "50% {}, 90% {}, 99% {}, slowest {} ({})",
                    at(latency.p50_micros),
                    at(latency.p90_micros),
                    at(latency.p99_micros),
                    at(latency.max_micros),
                    count(latency.knocks, "knock")
                )),
            ])
        }
        None => Line::from(vec![Span::from("latency ").dim(), Span::from("no knock yet")]),
    };
    let title = Line::from(title).style(Style::new().add_modifier(Modifier::BOLD));
    let [first, middle, last] = area.layout(&Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(2),
    ]));
    frame.render_widget(title, first);
    frame.render_widget(Paragraph::new(second).wrap(Wrap { trim: true }), middle);
    frame.render_widget(Paragraph::new(vec![third, fourth]), last);
}

fn draw_reasons(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let block = Block::bordered().title(" dropped ");
    if state.rates.dropped.is_empty() {
        frame.render_widget(Paragraph::new("nothing").block(block), area);
        return;
    }
    let rows = state.rates.dropped.iter().map(|(reason, per_second, total)| {
        let style = if *per_second > 0.0 { Style::new() } else { Style::new().dim() };
        ratatui::widgets::Row::new([
            Line::from(reason.as_str()),
            Line::from(rate(*per_second)).right_aligned(),
            Line::from(total.to_string()).right_aligned(),
        ])
        .style(style)
    });
    let widths = [Constraint::Fill(1), Constraint::Length(6), Constraint::Length(10)];
    let heading = ratatui::widgets::Row::new([
        Line::from("REASON"),
        Line::from("/s").right_aligned(),
        Line::from("ALL").right_aligned(),
    ]);
    frame.render_widget(Table::new(rows, widths).header(heading.dim()).block(block), area);
}

/// A bar for each second, the latest at the right.
fn draw_noise(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let room = usize::from(area.width.saturating_sub(2));
    let shown = state.noise.len().saturating_sub(room);
    let missing = room.saturating_sub(state.noise.len());
    let bars: Vec<Option<u64>> = std::iter::repeat_n(None, missing)
        .chain(state.noise.iter().skip(shown).copied().map(Some))
        .collect();
    let most = state.noise.iter().skip(shown).copied().max().unwrap_or(0);
    let received = if area.width < 60 {
        String::new()
    } else {
        format!("; received {}/s", rate(state.rates.received))
    };
    let title = format!(" noise {}/s, at most {most}/s{received} ", rate(state.rates.noise));
    let plot = Sparkline::default()
        .data(bars)
        .max(most.max(1))
        .absent_value_symbol(" ")
        .style(Style::new().fg(Color::Cyan));
    frame.render_widget(plot.block(Block::bordered().title(title)), area);
}

fn draw_grants(frame: &mut Frame<'_>, area: Rect, state: &mut State, status: &Status) {
    // Two lines of the frame, and the heading.
    state.fits(usize::from(area.height.saturating_sub(3)));
    let clients = status.clients.enabled;
    let refused = match status.refused {
        0 => String::new(),
        refused => format!("; {} refused", count(refused, "source")),
    };
    let title = format!(" {} open, of {}{refused} ", status.grants, count(clients, "client"));
    let mut block = Block::bordered().title(title);
    let Some(grants) = &state.grants else {
        let text = format!(
            "more than {MOST_LISTED} grants are not listed here; `spa-server grants list` shows them"
        );
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }).block(block), area);
        return;
    };
    let shown: Vec<&Row> = grants.iter().skip(state.first).take(state.page).collect();
    if shown.len() < grants.len() {
        let last = state.first.saturating_add(shown.len());
        let first = state.first.saturating_add(1);
        let place = Line::from(format!(" {first}-{last} of {} ", grants.len())).right_aligned();
        block = block.title(place);
    }
    let is_wide = area.width >= 100;
    let sources = shown.iter().map(|row| row.source.len()).max().unwrap_or(0).max(15);
    let sources = u16::try_from(sources).unwrap_or(u16::MAX).min(43);
    let mut widths = vec![
        Constraint::Fill(2),
        Constraint::Length(sources),
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Length(9),
    ];
    let mut heading = vec!["CLIENT", "SOURCE", "SERVICE", "PORTS", "LEFT"];
    if is_wide {
        widths.push(Constraint::Length(16));
        heading.push("REQUEST");
    }
    let rows = shown.into_iter().map(|row| {
        let left = seconds(row.seconds_left);
        let mut cells = vec![
            row.client.clone(),
            row.source.clone(),
            row.service.clone(),
            row.ports.clone(),
            left,
        ];
        if is_wide {
            cells.push(row.request.clone());
        }
        let style = if row.seconds_left < 10 { Style::new().yellow() } else { Style::new() };
        ratatui::widgets::Row::new(cells).style(style)
    });
    let heading = ratatui::widgets::Row::new(heading).dim();
    let table = Table::new(rows, widths).header(heading).column_spacing(2).block(block);
    frame.render_widget(table, area);
}

fn foot_line(state: &State) -> Line<'static> {
    let mut spans = vec![Span::from(KEYS).dim()];
    if state.paused {
        spans.push(Span::from("   "));
        spans.push(Span::from(" paused ").reversed());
    }
    Line::from(spans)
}

fn alarm() -> Style {
    Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)
}

/// With as many digits as can be told apart.
fn rate(per_second: f64) -> String {
    if per_second > 0.0 && per_second < 9.95 {
        format!("{per_second:.1}")
    } else {
        format!("{per_second:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::{answer, grants, status};
    use super::super::state::{Answer, Scroll};
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::buffer::Cell;
    use std::time::Duration;

    fn shown(state: &mut State, width: u16, height: u16) -> TestBackend {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        terminal.backend().clone()
    }

    /// A minute of a busy server.
    fn busy(count: u8) -> State {
        let mut state = State::default();
        for second in 1..=60 {
            let mut answer = answer(second, count);
            answer.status.grants = count.into();
            // It comes in waves.
            let noise = 50 * second * second + 900 * (second % 7);
            answer.status.dropped.insert("unknown-tag".into(), noise);
            state.heard(Ok(answer));
        }
        state
    }

    #[test]
    fn a_small_terminal() {
        insta::assert_snapshot!(shown(&mut busy(4), 80, 24));
    }

    #[test]
    fn a_large_terminal() {
        insta::assert_snapshot!(shown(&mut busy(60), 160, 50));
    }

    #[test]
    fn more_than_fits_is_scrolled() {
        let mut state = busy(60);
        shown(&mut state, 80, 24);
        state.scroll(Scroll::PageDown);
        state.scroll(Scroll::Down);
        state.paused = true;
        insta::assert_snapshot!(shown(&mut state, 80, 24));
    }

    #[test]
    fn a_daemon_that_does_not_run() {
        let mut state = State::default();
        state.heard(Err("the daemon does not run: nobody listens at /run/spa/control.sock; start it with `systemctl start spa-server`".into()));
        insta::assert_snapshot!(shown(&mut state, 80, 12));
    }

    #[test]
    fn a_daemon_that_has_gone() {
        let mut state = busy(2);
        state.heard(Err("the daemon does not run: nobody listens at /run/spa/control.sock; start it with `systemctl start spa-server`".into()));
        insta::assert_snapshot!(shown(&mut state, 80, 24));
    }

    #[test]
    fn too_many_grants_are_not_listed_and_said_to_be_so() {
        let mut state = State::default();
        let mut status = Box::new(status(1));
        status.grants = 12_345;
        state.heard(Ok(Answer { at: Duration::ZERO, status, grants: None }));
        let text = shown(&mut state, 80, 24).to_string();
        assert!(text.contains("12345 open") && text.contains("grants list"), "{text}");
    }

    #[test]
    fn nothing_that_a_terminal_would_obey_is_drawn() {
        let mut state = State::default();
        let evil = "\u{1b}]0;x\u{7}\u{202e}\u{9b}2J";
        let mut status = status(1);
        for text in
            [&mut status.version, &mut status.gate, &mut status.mode, &mut status.replay_store]
        {
            text.push_str(evil);
        }
        status.interfaces[0].state = evil.into();
        status.dropped.insert(evil.into(), 1);
        let mut grants = grants(3);
        for grant in &mut grants {
            grant.client = evil.into();
            grant.request_id = evil.into();
        }
        let status = Box::new(status);
        state.heard(Ok(Answer { at: Duration::ZERO, status, grants: Some(grants) }));
        for fault in [None, Some(evil)] {
            if let Some(fault) = fault {
                state.heard(Err(fault.into()));
            }
            let backend = shown(&mut state, 160, 50);
            let drawn: String = backend.buffer().content().iter().map(Cell::symbol).collect();
            assert!(drawn.contains("\u{fffd}]0;x\u{fffd}\u{fffd}\u{fffd}2J"), "{drawn}");
            assert_eq!(plain(&drawn), drawn);
        }
    }

    #[test]
    fn any_size_is_drawn() {
        for (width, height) in [(1, 1), (39, 24), (40, 12), (41, 13), (80, 24), (300, 90)] {
            for state in [&mut State::default(), &mut busy(3)] {
                shown(state, width, height);
            }
        }
    }

    #[test]
    fn rates_have_the_digits_that_matter() {
        for (per_second, text) in [(0.0, "0"), (0.5, "0.5"), (9.96, "10"), (123_456.7, "123457")] {
            assert_eq!(rate(per_second), text);
        }
    }
}
