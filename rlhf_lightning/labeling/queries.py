"""What the store asks its database for."""

ASSIGNMENT = "SELECT a.*, t.body, t.closed FROM assignments a JOIN tasks t ON t.number = a.task"
_TAKEN = """(SELECT count(*) FROM assignments o WHERE o.task = t.number AND o.labeler <> :labeler
    AND (o.done OR o.touched_at > :fresh))"""
_ROOM = f"(t.wanted IS NULL OR {_TAKEN} < t.wanted)"

IN_HANDS = f"""{ASSIGNMENT} WHERE a.labeler = :labeler AND NOT a.done AND NOT t.closed
    AND t.kind = ifnull(:kind, t.kind) AND {_ROOM} ORDER BY a.touched_at DESC, a.id DESC LIMIT 1"""
"""What a labeler has, first what they touched last; what the clock took from them too, unless somebody has it now."""

FREE = f"""SELECT t.number, t.body FROM tasks t WHERE t.lacking > 0 AND NOT t.closed AND t.kind = ifnull(:kind, t.kind)
    AND NOT EXISTS (SELECT 1 FROM assignments m WHERE m.task = t.number AND m.labeler = :labeler)
    AND {_ROOM} ORDER BY t.number LIMIT 1"""

LAST = """SELECT a.*, t.body, s.number AS save, s.answer AS taken_back FROM saves s
    JOIN assignments a ON a.id = s.assignment JOIN tasks t ON t.number = a.task
    WHERE a.labeler = ? AND a.done AND NOT t.closed AND s.undone_at IS NULL ORDER BY s.number DESC LIMIT 1"""

ANSWERS = """SELECT s.*, a.labeler, a.display, a.given_at, t.body FROM saves s
    JOIN assignments a ON a.id = s.assignment JOIN tasks t ON t.number = a.task WHERE (s.undone_at IS NOT NULL) = ?
    AND t.batch = ifnull(?, t.batch) AND t.kind = ifnull(?, t.kind) ORDER BY s.number"""

PROGRESS = """SELECT sum(wanted) AS wanted, sum(min(wanted, done)) AS done, sum(skipped) AS skipped,
    sum(open) AS given_out FROM (SELECT t.wanted, count(s.number) AS done, sum(ifnull(s.skipped, 0)) AS skipped,
        count(CASE WHEN NOT a.done AND a.touched_at > :fresh THEN 1 END) AS open
    FROM tasks t LEFT JOIN assignments a ON a.task = t.number
    LEFT JOIN saves s ON s.assignment = a.id AND s.undone_at IS NULL
    WHERE t.wanted IS NOT NULL AND t.batch = ifnull(:batch, t.batch) GROUP BY t.number)"""
