"""The texts of the benchmarks' prompts, word for word: a score is only comparable where the question is.

RULER          Hsieh et al. 2024, arXiv 2404.06654, as in its repository and in lm-eval's tasks `niah_*`, `ruler_*`
passkey        Mohtashami and Jaggi 2023, arXiv 2305.16300
key-value      Liu et al. 2023, Lost in the Middle, arXiv 2307.03172
several cities Liu et al. 2024, Large World Model, arXiv 2402.08268; the beginning of the answer is ours

Where a text comes in two forms, the first is for one answer and the second for several.
"""

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

NEEDLE = "One of the special magic {kinds} for {key} is: {value}."
FIND_ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. I will quiz you about the "
    "{kind} afterwards.\n{context}\nWhat is the special magic {kind} for {query} mentioned in the provided text?"
)
FIND_SEVERAL = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I will quiz you about "
    "the {kind} afterwards.\n{context}\nWhat are all the special magic {kind} for {query} mentioned in the provided "
    "text?"
)
FOUND_ONE = "The special magic {kind} for {query} mentioned in the provided text is"
FOUND_SEVERAL = "The special magic {kind} for {query} mentioned in the provided text are"

TRACK = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\nQuestion: Find "
    "all variables that are assigned the value {query} in the text above."
)
# The misspelling is RULER's.
TRACKED = (
    "Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assgined the "
    "value {query}, they are:"
)

COUNT_COMMON = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list?"
)
COUNTED_COMMON = "Answer: The top 10 words that appear most often in the list are:"

COUNT_FREQUENT = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the "
    "three most frequently appeared words in the above coded text?"
)
COUNTED_FREQUENT = "Answer: According to the coded text above, the three most frequently appeared words are:"

ANSWER_FROM = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "The following are given documents.\n\n{context}\n\nAnswer the question based on the given documents. Only give me "
    "the answer and do not output any other words.\n\nQuestion: {query}"
)
DOCUMENT = "Document {number}:\n{text}"
ANSWERED = "Answer:"

PASSKEY = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz you "
    "about the important information there.\n{context}\nWhat is the pass key?"
)
PASSKEY_NEEDLE = "The pass key is {value}. Remember it. {value} is the pass key."
PASSKEY_FOUND = "The pass key is"

LOOK_UP = (
    "Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n{context}\n\n"
    'Key: "{query}"'
)
LOOKED_UP = "\nCorresponding value:"

CITY_NEEDLE = "The special magic {city} number is: {value}"
CITY = "{context}\nWhat is the special magic number for {query}? Don't give information outside the document."
CITIES = "{context}\nWhat are the special magic numbers for {query}? Don't give information outside the document."
CITY_FOUND = "The special magic number for {query} is"
CITIES_FOUND = "The special magic numbers for {query} are"
