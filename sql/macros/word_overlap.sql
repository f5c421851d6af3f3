-- grain: one number per pair of texts: the share of the first's distinct words that the second has too
-- null where the first has no word
create or replace macro word_overlap(given, other) as
    len(list_intersect(list_distinct(words_of(given)), words_of(other)))
    / nullif(len(list_distinct(words_of(given))), 0)
