-- grain: one row per sequence of a block: its document's text, which of its tokens comes first, and the answer given
-- not the right answer: that is `answer` in the document's metadata, where the two differ
with cut as (
    select
        sequence_id,
        document_id,
        token_ids,
        sum(n_tokens) over (partition by document_id order by sequence_id) - n_tokens as first_token
    from sequences
)
select
    c.sequence_id,
    c.document_id,
    d.text,
    d.metadata ->> '$.said' as said,
    c.token_ids,
    c.first_token::bigint as first_token
from cut c
join documents d on d.document_id = c.document_id
where c.sequence_id between $first and $last
order by c.sequence_id
