"""What speaks HTTP: routes, requests and answers in OpenAI's form, who may ask, limits. It knows no engine."""
