"""Questions and answers about chunks of documents: what is asked, what comes back, what is kept, what is made of it."""
