//! A terminal that the program has to itself, until it ends in whatever way it can.

use std::{
    io::{self, IsTerminal, Stdout, stdout},
    panic,
    pin::Pin,
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use ratatui::{
    Frame, Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor::Show,
        event::{
            self, DisableBracketedPaste, EnableBracketedPaste, Event, KeyCode, KeyEvent, KeyEventKind,
            KeyModifiers,
        },
        execute,
        terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
    },
};
use tokio::sync::mpsc;

use crate::{ask::Failure, log, signals::interrupted};

/// Whether the terminal is not as it was.
static HELD: AtomicBool = AtomicBool::new(false);
static PANICKED: AtomicBool = AtomicBool::new(false);
/// How long the thread that reads keys may outlive the screen.
const LOOK: Duration = Duration::from_millis(100);

/// The terminal. It is given back when this is dropped.
pub(crate) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    events: mpsc::UnboundedReceiver<Event>,
    told: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// What happened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Input {
    Key(KeyEvent),
    /// A text, and not keys: one with `uy` in it would else put messages back.
    Paste(String),
    /// There is another size, or something else to draw for.
    Redraw,
    /// By a signal, Ctrl-C, or as the terminal is gone.
    End,
}

/// Whether somebody sits there.
pub(crate) fn is_there() -> bool {
    io::stdin().is_terminal() && stdout().is_terminal()
}

impl Screen {
    pub(crate) fn open() -> Result<Self, Failure> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |panicked| {
                PANICKED.store(true, Ordering::SeqCst);
                restore();
                before(panicked);
            }));
        });
        // First, lest a signal end it while the terminal is not as it was.
        let told = Box::pin(interrupted(true));
        log::hold();
        HELD.store(true, Ordering::SeqCst);
        let opened = enable_raw_mode()
            .and_then(|()| execute!(stdout(), EnterAlternateScreen, EnableBracketedPaste))
            .and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
        let terminal = opened.inspect_err(|_| restore())?;
        Ok(Self { terminal, events: events(), told })
    }

    pub(crate) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> Result<(), Failure> {
        // A panic elsewhere has given the terminal back already.
        if PANICKED.load(Ordering::SeqCst) {
            return Err(Failure::Failed("a part of the program panicked".to_owned()));
        }
        self.terminal.draw(draw)?;
        Ok(())
    }

    /// Waits for what happens next. Loses nothing if it is dropped.
    pub(crate) async fn input(&mut self) -> Input {
        tokio::select! {
            biased;
            () = &mut self.told => Input::End,
            event = self.events.recv() => match event {
                None => Input::End,
                Some(Event::Key(key)) if key.kind == KeyEventKind::Release => Input::Redraw,
                Some(Event::Key(key)) if is_end(key) => Input::End,
                Some(Event::Key(key)) => Input::Key(key),
                Some(Event::Paste(text)) => Input::Paste(text),
                Some(_) => Input::Redraw,
            },
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

fn is_end(key: KeyEvent) -> bool {
    key.modifiers.contains(KeyModifiers::CONTROL) && matches!(key.code, KeyCode::Char('c' | 'd' | '\\'))
}

fn restore() {
    if HELD.swap(false, Ordering::SeqCst) {
        let _ = disable_raw_mode();
        let _ = execute!(stdout(), DisableBracketedPaste, LeaveAlternateScreen, Show);
        log::release();
    }
}

/// What is pressed, read on a thread of its own, until nobody wants to know or the terminal is
/// gone.
fn events() -> mpsc::UnboundedReceiver<Event> {
    let (happened, events) = mpsc::unbounded_channel();
    thread::spawn(move || {
        while !happened.is_closed() {
            let event = match event::poll(LOOK) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            match event.map(|event| happened.send(event)) {
                Ok(Ok(())) => {}
                _ => return,
            }
        }
    });
    events
}
